# All images for amd64 and arm64, for releases: `docker buildx bake --push` (REGISTRY, VERSION, REVISION from the environment).
# scripts/build-images builds the same targets for one machine and needs no Buildx.

variable "REGISTRY" { default = "trellis" }
variable "VERSION" { default = "dev" }
variable "REVISION" { default = "unknown" }
variable "BASE_IMAGE" { default = "python:3.12-slim-bookworm" }

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
  args = {
    BASE_IMAGE = BASE_IMAGE
    VERSION    = VERSION
    REVISION   = REVISION
  }
}
