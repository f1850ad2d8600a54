{{/* A NetworkPolicy's beginning, up to its rules. Called with (root, name, component) or with the site, too. */}}
{{- define "trellis.network.head" -}}
{{- $root := index . 0 -}}{{- $selected := concat (list $root) (slice . 2) -}}
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ include "trellis.name" (list $root (index . 1)) }}
  labels: {{- include "trellis.labels" $selected | nindent 4 }}
spec:
  podSelector:
    matchLabels: {{- include "trellis.labels.selector" $selected | nindent 6 }}
  policyTypes: [Ingress, Egress]
{{- end -}}

{{/* A peer: pods of a role of this release. Called with (root, component) or with the site, too. */}}
{{- define "trellis.network.peer" -}}
- podSelector:
    matchLabels: {{- include "trellis.labels.selector" . | nindent 6 }}
{{- end -}}

{{/* Who measures may reach the operations port. Called with the root. */}}
{{- define "trellis.network.metrics" -}}
{{- with .Values.networkPolicy.metrics.from }}
- from: {{- toYaml . | nindent 4 }}
  ports: [{ port: ops }]
{{- end }}
{{- end -}}

{{/* Names are looked up. Called with the root. */}}
{{- define "trellis.network.dns" -}}
- ports:
    {{- range .Values.networkPolicy.dns.ports }}
    - { port: {{ int64 . }}, protocol: UDP }
    - { port: {{ int64 . }}, protocol: TCP }
    {{- end }}
  {{- with .Values.networkPolicy.dns.to }}
  to: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* To a port anywhere: where a name stands that no policy can select by. Called with the port. */}}
{{- define "trellis.network.anywhere" -}}
- ports: [{ port: {{ . }}, protocol: TCP }]
{{- end -}}

{{/* Where a SuperNode goes: the SuperLink's Fleet API, over gRPC or HTTP. Called with the root. */}}
{{- define "trellis.network.toFleet" -}}
{{- if .Values.superlink.enabled -}}
- to: {{- include "trellis.network.peer" (list . "superlink") | nindent 4 }}
  ports: [{ port: fleet }, { port: http }]
{{- else -}}
{{- include "trellis.network.anywhere" (include "trellis.port" (list .Values.externalSuperlink.address "9092")) }}
{{- end }}
{{- end -}}
