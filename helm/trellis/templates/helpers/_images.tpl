{{/* An image's whole name; what the component does not say is said by `image`. Called with (root, image, default tag). */}}
{{- define "trellis.image" -}}
{{- $root := index . 0 -}}{{- $image := index . 1 -}}
{{- $registry := $image.registry | default $root.Values.image.registry -}}
{{- $tag := $image.tag | default $root.Values.image.tag | default $root.Chart.AppVersion -}}
{{- if $registry }}{{ trimSuffix "/" $registry }}/{{ end }}{{ $image.repository }}:{{ $tag }}
{{- end -}}

{{/* With what images are pulled, as a part of a pod; empty where nothing is needed. Called with the root. */}}
{{- define "trellis.image.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "trellis.image.fields" -}}
image: {{ include "trellis.image" . | quote }}
imagePullPolicy: {{ (index . 0).Values.image.pullPolicy }}
{{- end -}}
