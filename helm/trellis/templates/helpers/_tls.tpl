{{/* "true" where connections are TLS. Called with the root. */}}
{{- define "trellis.tls" -}}
{{- if ne .Values.tls.source "none" }}true{{ end -}}
{{- end -}}

{{/* The Secret with a role's certificate. Called with (root, role). */}}
{{- define "trellis.tls.secret" -}}
{{- $root := index . 0 -}}{{- $role := index . 1 -}}
{{- index $root.Values.tls.existingSecrets $role | default (printf "%s-tls" (include "trellis.name" .)) -}}
{{- end -}}

{{/* The roles of this release that have a certificate, as a list in JSON. Called with the root. */}}
{{- define "trellis.tls.roles" -}}
{{- $roles := list -}}
{{- if .Values.superlink.enabled }}{{ $roles = concat $roles (list "superlink" "serverapp") }}{{ end -}}
{{- if .Values.keycloak.enabled }}{{ $roles = append $roles "keycloak" }}{{ end -}}
{{- range .Values.supernodes }}
{{- if not .samePod }}{{ $roles = concat $roles (list (printf "supernode-%s" .name) (printf "clientapp-%s" .name)) }}{{ end -}}
{{- end -}}
{{- toJson $roles -}}
{{- end -}}

{{/* The names under which a role's server is reached, as a list in JSON. Called with (root, role). */}}
{{- define "trellis.tls.names" -}}
{{- $root := index . 0 -}}{{- $role := index . 1 -}}
{{- $service := include "trellis.name" . -}}{{- $namespace := $root.Release.Namespace -}}
{{- $names := list $service (printf "%s.%s" $service $namespace) (printf "%s.%s.svc" $service $namespace) -}}
{{- $names = append $names (printf "%s.%s.svc.%s" $service $namespace $root.Values.clusterDomain) -}}
{{- $names = append $names "localhost" -}}
{{- $access := $root.Values.access -}}
{{- if eq $role "superlink" -}}
{{- $names = concat $names $root.Values.tls.names -}}
{{- range tuple "control" "fleet" "http" -}}
{{- if $access.ingress.enabled }}{{ with (index $access.ingress .).host }}{{ $names = append $names . }}{{ end }}{{ end -}}
{{- if $access.gateway.enabled }}{{ $names = concat $names (index $access.gateway .).hostnames }}{{ end -}}
{{- end -}}
{{- else if eq $role "keycloak" -}}
{{- $names = concat $names $root.Values.tls.keycloakNames -}}
{{- $url := regexReplaceAll "^https://([^/:]*).*$" (include "trellis.keycloak.url" $root) "${1}" -}}
{{- $names = append $names $url -}}
{{- end -}}
{{- toJson (uniq $names) -}}
{{- end -}}

{{/* The source of a projected volume that holds the CA of the SuperLink, as ca.crt. Called with the root. */}}
{{- define "trellis.tls.networkCa" -}}
{{- if or .Values.superlink.enabled (not .Values.externalSuperlink.address) -}}
- secret:
    name: {{ include "trellis.tls.secret" (list . "superlink") | quote }}
    items: [{ key: ca.crt, path: ca.crt }]
{{- else if .Values.externalSuperlink.caSecret.name -}}
- secret:
    name: {{ .Values.externalSuperlink.caSecret.name | quote }}
    items: [{ key: {{ .Values.externalSuperlink.caSecret.key | quote }}, path: ca.crt }]
{{- else -}}
- configMap:
    name: {{ include "trellis.name" (list . "network-ca") }}
    items: [{ key: ca.crt, path: ca.crt }]
{{- end -}}
{{- end -}}

{{/*
A role's folder of certificates, as one volume. With cert-manager each Secret has its own CA's certificate as ca.crt, so
that what a role trusts comes out of its counterpart's Secret; of the key there, nothing is mounted.
Called with (root, role, the other side's role).
*/}}
{{- define "trellis.tls.volume" -}}
{{- $root := index . 0 -}}{{- $role := index . 1 -}}{{- $other := index . 2 -}}
{{- $kind := first (splitList "-" $role) -}}
- name: certs
  projected:
    defaultMode: 0440
    sources:
      {{- if eq $root.Values.tls.source "certManager" }}
      - secret:
          name: {{ include "trellis.tls.secret" (list $root $role) | quote }}
          items: [{ key: tls.crt, path: tls.crt }, { key: tls.key, path: tls.key }]
      {{- if eq $kind "clientapp" }}
      - secret:
          name: {{ include "trellis.tls.secret" (list $root $other) | quote }}
          items: [{ key: ca.crt, path: ca.crt }]
      {{- else }}
      {{- include "trellis.tls.networkCa" $root | nindent 6 }}
      {{- end }}
      {{- if has $kind (list "superlink" "supernode") }}
      - secret:
          name: {{ include "trellis.tls.secret" (list $root $other) | quote }}
          items: [{ key: ca.crt, path: executor-ca.crt }]
      {{- end }}
      {{- else }}
      - secret:
          name: {{ include "trellis.tls.secret" (list $root $role) | quote }}
      {{- end }}
{{- end -}}
