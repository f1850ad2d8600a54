{{/* What everything of the release begins with. Called with the root. */}}
{{- define "trellis.fullname" -}}
{{- .Values.fullnameOverride | default .Release.Name -}}
{{- end -}}

{{/* The name of a role's objects: RELEASE-superlink, RELEASE-supernode-SITE. Called with (root, role). */}}
{{- define "trellis.name" -}}
{{- printf "%s-%s" (include "trellis.fullname" (index . 0)) (index . 1) -}}
{{- end -}}

{{/* Where SuperNodes reach the SuperLink's Fleet API. Called with the root. */}}
{{- define "trellis.fleet.address" -}}
{{- if .Values.superlink.enabled -}}
{{- include "trellis.name" (list . "superlink") }}:9092
{{- else -}}
{{- .Values.externalSuperlink.address -}}
{{- end -}}
{{- end -}}

{{/* The port in host:port or in a URL, where it may be missing. Called with (address, default). */}}
{{- define "trellis.port" -}}
{{- $host := regexReplaceAll "^[a-z]+://([^/]*).*$" (index . 0) "${1}" -}}
{{- $found := regexFind ":[0-9]+$" $host -}}
{{- if $found }}{{ trimPrefix ":" $found }}{{ else }}{{ index . 1 }}{{ end -}}
{{- end -}}

{{/* Where the HTTP edge is reached from outside; empty where only the operator knows. Called with the root. */}}
{{- define "trellis.http.url" -}}
{{- if and .Values.access.ingress.enabled .Values.access.ingress.http.host -}}
https://{{ .Values.access.ingress.http.host }}
{{- else if and .Values.access.gateway.enabled .Values.access.gateway.http.hostnames -}}
https://{{ first .Values.access.gateway.http.hostnames }}
{{- end -}}
{{- end -}}

{{/* Keycloak as browsers and tokens name it. Called with the root. */}}
{{- define "trellis.keycloak.url" -}}
{{- $host := .Values.access.ingress.keycloak.host -}}
{{- if .Values.keycloak.url -}}
{{- trimSuffix "/" .Values.keycloak.url -}}
{{- else if and .Values.access.ingress.enabled $host -}}
https://{{ $host }}
{{- else -}}
https://{{ include "trellis.name" (list . "keycloak") }}:8443
{{- end -}}
{{- end -}}

{{/* The issuer of tokens, empty where there are no accounts. Called with the root. */}}
{{- define "trellis.oidc.issuer" -}}
{{- if .Values.keycloak.enabled -}}
{{- include "trellis.keycloak.url" . }}/realms/trellis
{{- else -}}
{{- .Values.oidc.externalIssuer -}}
{{- end -}}
{{- end -}}
