{{/* A site's SuperNode: what all have in common, and over it what this one says. Called with (root, site); YAML. */}}
{{- define "trellis.site.supernode" -}}
{{- $root := index . 0 -}}{{- $site := index . 1 -}}
{{- toYaml (mustMergeOverwrite (deepCopy $root.Values.supernode) (deepCopy ($site.supernode | default dict))) -}}
{{- end -}}

{{- define "trellis.site.clientapp" -}}
{{- $root := index . 0 -}}{{- $site := index . 1 -}}
{{- toYaml (mustMergeOverwrite (deepCopy $root.Values.clientapp) (deepCopy ($site.clientapp | default dict))) -}}
{{- end -}}

{{/* Values that apps see, as the SuperNode reads them: strings in quotes, numbers and booleans as they are. */}}
{{- define "trellis.site.nodeConfig" -}}
{{- $words := list -}}
{{- range $name, $value := . -}}
{{- $shown := kindIs "string" $value | ternary (toJson $value) (include "trellis.settings.value" $value) -}}
{{- $words = append $words (printf "%s=%s" $name $shown) -}}
{{- end -}}
{{- join " " $words -}}
{{- end -}}

{{/* The container that runs apps. Called with (root, site, config). */}}
{{- define "trellis.clientapp.container" -}}
{{- $root := index . 0 -}}{{- $site := index . 1 -}}{{- $config := index . 2 -}}
{{- $ops := default false $site.samePod | ternary 8002 8001 -}}
- name: clientapp
  {{- include "trellis.image.fields" (list $root $config.image) | nindent 2 }}
  {{- include "trellis.container.security" $root | nindent 2 }}
  env:
    {{- if $site.samePod }}
    - { name: TRELLIS_CLIENTAPPIO_API_ADDRESS, value: "127.0.0.1:9094" }
    - { name: TRELLIS_INSECURE, value: "true" }
    - { name: TRELLIS_JOIN_TOKEN_FILE, value: /join/token }
    {{- else }}
    - name: TRELLIS_CLIENTAPPIO_API_ADDRESS
      value: {{ include "trellis.name" (list $root (printf "supernode-%s" $site.name)) }}:9094
    {{- include "trellis.executor.env" (list $root $site.name) | nindent 4 }}
    {{- end }}
    - { name: TRELLIS_OPS_ADDRESS, value: "0.0.0.0:{{ $ops }}" }
    {{- include "trellis.settings.grace" $config | nindent 4 }}
    {{- include "trellis.apps.env" $config | nindent 4 }}
    {{- include "trellis.settings.env" $config.settings | nindent 4 }}
    {{- with $config.extraEnv }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  ports:
    - { name: {{ default false $site.samePod | ternary "ops-clientapp" "ops" }}, containerPort: {{ $ops }} }
  {{- include "trellis.probes" (default false $site.samePod | ternary "ops-clientapp" "ops") | nindent 2 }}
  resources: {{- toYaml $config.resources | nindent 4 }}
  volumeMounts:
    {{- if $site.samePod }}
    - { name: clientapp-tmp, mountPath: /tmp }
    - { name: clientapp-var-tmp, mountPath: /var/tmp }
    - { name: join, mountPath: /join, readOnly: true }
    {{- else }}
    {{- include "trellis.scratch.mounts" $root | nindent 4 }}
    {{- if include "trellis.tls" $root }}
    - { name: certs, mountPath: /certs, readOnly: true }
    {{- else }}
    - { name: join, mountPath: /join, readOnly: true }
    {{- end }}
    {{- end }}
    {{- include "trellis.apps.mounts" $config | nindent 4 }}
    {{- with $config.extraVolumeMounts }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
{{- end -}}
