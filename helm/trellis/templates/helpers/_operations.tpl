{{/* A role's disruption budget. Called with (root, config, role, arguments of the selector). */}}
{{- define "trellis.pdb" -}}
{{- $root := index . 0 -}}{{- $config := index . 1 -}}{{- $role := index . 2 -}}
{{- if $config.pdb.enabled -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "trellis.name" (list $root $role) }}
  labels: {{- include "trellis.labels" (index . 3) | nindent 4 }}
spec:
  maxUnavailable: {{ $config.pdb.maxUnavailable }}
  selector:
    matchLabels: {{- include "trellis.labels.selector" (index . 3) | nindent 6 }}
{{- end }}
{{- end -}}

{{/* An executor's autoscaler. Called as the one above. */}}
{{- define "trellis.hpa" -}}
{{- $root := index . 0 -}}{{- $config := index . 1 -}}{{- $role := index . 2 -}}
{{- if $config.autoscaling.enabled -}}
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata:
  name: {{ include "trellis.name" (list $root $role) }}
  labels: {{- include "trellis.labels" (index . 3) | nindent 4 }}
spec:
  scaleTargetRef:
    apiVersion: apps/v1
    kind: Deployment
    name: {{ include "trellis.name" (list $root $role) }}
  minReplicas: {{ $config.autoscaling.minReplicas }}
  maxReplicas: {{ $config.autoscaling.maxReplicas }}
  metrics:
    - type: Resource
      resource:
        name: cpu
        target: { type: Utilization, averageUtilization: {{ $config.autoscaling.targetCPUUtilizationPercentage }} }
{{- end }}
{{- end -}}
