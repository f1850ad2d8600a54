{{/* The Secret with Keycloak's passwords. Called with the root. */}}
{{- define "trellis.keycloak.secret" -}}
{{- .Values.keycloak.existingSecret | default (include "trellis.name" (list . "keycloak")) -}}
{{- end -}}

{{/* The paths that browsers and command lines need; what is not here, /admin and /metrics above all, is not routed. */}}
{{- define "trellis.keycloak.paths" -}}
["/realms/", "/resources/"]
{{- end -}}
