{{/* The Secret with Keycloak's passwords. Called with the root. */}}
{{- define "trellis.keycloak.secret" -}}
{{- .Values.keycloak.existingSecret | default (include "trellis.name" (list . "keycloak")) -}}
{{- end -}}

{{/* Whether a Service gives it to the outside, with all its paths. Called with the root. */}}
{{- define "trellis.keycloak.published" -}}
{{- if and (ne .Values.access.service.type "none") .Values.access.service.keycloak.enabled }}true{{ end -}}
{{- end -}}

{{/* The paths that browsers and command lines need; what is not here, /admin, the administrators' own realm
and /metrics above all, is not routed. */}}
{{- define "trellis.keycloak.paths" -}}
["/realms/trellis/", "/resources/"]
{{- end -}}
