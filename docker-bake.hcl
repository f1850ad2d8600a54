# All images for amd64 and arm64, for releases: scripts/push-images, by `docker buildx bake --push`.
# scripts/build-images takes names and Dockerfiles from here, one a line; it builds for one machine and needs no Buildx.

variable "REGISTRY" { default = "trellis" }
variable "VERSION" { default = "dev" }
variable "REVISION" { default = "unknown" }
variable "BASE_IMAGE" { default = "python:3.12-slim-bookworm" }
# The folder that scripts/pip-secrets filled: what pip is told, kept by no image.
variable "SECRETS" { default = "" }

group "default" {
  targets = ["images"]
}

target "images" {
  name = image.name
  matrix = {
    image = [
      { name = "superlink", file = "services/superlink/Dockerfile" },
      { name = "superlink-subprocess", file = "services/superlink/Dockerfile" },
      { name = "supernode", file = "services/supernode/Dockerfile" },
      { name = "supernode-subprocess", file = "services/supernode/Dockerfile" },
      { name = "serverapp", file = "services/serverapp/Dockerfile" },
      { name = "superexec", file = "services/serverapp/Dockerfile" },
      { name = "clientapp", file = "services/clientapp/Dockerfile" },
      { name = "cli", file = "cli/Dockerfile" },
    ]
  }
  context    = "."
  dockerfile = image.file
  target     = image.name
  platforms  = ["linux/amd64", "linux/arm64"]
  tags       = ["${REGISTRY}/${image.name}:${VERSION}"]
  secret     = SECRETS == "" ? [] : ["id=pip-conf,src=${SECRETS}/pip.conf", "id=ca-bundle,src=${SECRETS}/ca-bundle"]
  args = {
    BASE_IMAGE = BASE_IMAGE
    VERSION    = VERSION
    REVISION   = REVISION
  }
}
