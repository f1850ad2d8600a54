{{/* What selects a role's pods, and never changes. Called with (root, component) or (root, component, site). */}}
{{- define "trellis.labels.selector" -}}
app.kubernetes.io/name: trellis
app.kubernetes.io/instance: {{ (index . 0).Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- if gt (len .) 2 }}
trellis/site: {{ index . 2 | quote }}
{{- end }}
{{- end -}}

{{/* All labels of an object. Called as the one above. */}}
{{- define "trellis.labels" -}}
{{- $root := index . 0 -}}
{{- include "trellis.labels.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
app.kubernetes.io/part-of: trellis
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}
