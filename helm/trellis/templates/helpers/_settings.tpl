{{/* Text for a container's environment, in quotes: Kubernetes would put something in place of $(NAME) and of $$. */}}
{{- define "trellis.literal" -}}
{{- replace "$" "$$" . | quote -}}
{{- end -}}

{{/* A number as people wrote it: helm reads 86400 as a float. */}}
{{- define "trellis.settings.value" -}}
{{- if kindIs "slice" . -}}
{{- join "," . -}}
{{- else if and (kindIs "float64" .) (eq . (floor .)) -}}
{{- printf "%.0f" . -}}
{{- else -}}
{{- toString . -}}
{{- end -}}
{{- end -}}

{{/* The environment that a program's `settings` are: `runs-per-account: 3` is TRELLIS_RUNS_PER_ACCOUNT. */}}
{{- define "trellis.settings.env" -}}
{{- range $name, $value := . }}
{{- if not (kindIs "invalid" $value) }}
- name: TRELLIS_{{ $name | upper | replace "-" "_" }}
  value: {{ include "trellis.literal" (include "trellis.settings.value" $value) }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Time to end in order: ten seconds less than Kubernetes waits. Called with a component's config. */}}
{{- define "trellis.settings.grace" -}}
- name: TRELLIS_GRACE
  value: {{ max 1 (sub (int .terminationGracePeriodSeconds) 10) | quote }}
{{- end -}}

{{/* How an executor shows who it is. Called with (root, key in the Secret of join tokens). */}}
{{- define "trellis.executor.env" -}}
{{- if include "trellis.tls" (index . 0) }}
- { name: TRELLIS_ROOT_CERTIFICATES, value: /certs/ca.crt }
- { name: TRELLIS_CERTFILE, value: /certs/tls.crt }
- { name: TRELLIS_KEYFILE, value: /certs/tls.key }
{{- else }}
- { name: TRELLIS_INSECURE, value: "true" }
- { name: TRELLIS_JOIN_TOKEN_FILE, value: /join/token }
{{- end }}
{{- end -}}

{{/* The Secret with the tokens that executors show where they have no certificate. Called with the root. */}}
{{- define "trellis.join.secret" -}}
{{- .Values.tls.joinTokens.existingSecret | default (include "trellis.name" (list . "join-tokens")) -}}
{{- end -}}

{{- define "trellis.join.volume" -}}
- name: join
  secret:
    secretName: {{ include "trellis.join.secret" (index . 0) | quote }}
    defaultMode: 0440
    items: [{ key: {{ index . 1 | quote }}, path: token }]
{{- end -}}

{{/* What apps may see of the operator's: variables and files. Called with an executor's config. */}}
{{- define "trellis.apps.env" -}}
{{- range $name, $value := .appEnv }}
- name: {{ $name }}
  value: {{ include "trellis.literal" (include "trellis.settings.value" $value) }}
{{- end }}
{{- with .appEnv }}
- name: TRELLIS_APP_ENV
  value: {{ keys . | sortAlpha | join "," | quote }}
{{- end }}
{{- with .appSecrets }}
- name: TRELLIS_APP_SECRET
  value: "{{ range $index, $one := . }}{{ if $index }},{{ end }}/app-secrets/{{ $one.name }}/{{ $one.name }}{{ end }}"
{{- end }}
{{- end -}}

{{- define "trellis.apps.volumes" -}}
{{- range .appSecrets }}
- name: app-secret-{{ .name }}
  secret:
    secretName: {{ .secret | quote }}
    defaultMode: 0440
    items: [{ key: {{ .key | quote }}, path: {{ .name | quote }} }]
{{- end }}
{{- with .data }}
{{- if .volume }}
- name: data
  {{- toYaml .volume | nindent 2 }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "trellis.apps.mounts" -}}
{{- range .appSecrets }}
- { name: app-secret-{{ .name }}, mountPath: /app-secrets/{{ .name }}, readOnly: true }
{{- end }}
{{- with .data }}
{{- if .volume }}
- { name: data, mountPath: {{ .mountPath | quote }}, readOnly: {{ .readOnly }} }
{{- end }}
{{- end }}
{{- end -}}
