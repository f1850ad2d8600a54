{{/* Whether `helm test` can submit: to a SuperLink that is here, by a login that is known. Called with the root. */}}
{{- define "trellis.tests.wanted" -}}
{{- $login := or .Values.keycloak.enabled (not .Values.oidc.externalIssuer) .Values.tests.login.clientId -}}
{{- if and .Values.tests.enabled .Values.superlink.enabled .Values.serverapp.enabled $login }}true{{ end -}}
{{- end -}}

{{/* How many sites have to answer: those of this release, unless the operator or the SuperLink keeps them apart. */}}
{{- define "trellis.tests.sites" -}}
{{- $held := or .Values.superlink.supernodeKeys (get .Values.superlink.settings "enable-supernode-auth") (has (get .Values.superlink.settings "unknown-supernodes") (list "hold" "refuse")) -}}
{{- if ge (int .Values.tests.sites) 0 }}{{ int .Values.tests.sites }}{{ else if $held }}0{{ else }}{{ len .Values.supernodes }}{{ end -}}
{{- end -}}
