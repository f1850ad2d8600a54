{{/* What Pod Security `restricted` asks of a pod. Called with the root. */}}
{{- define "trellis.pod.security" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  {{- with .Values.security.runAsUser }}
  runAsUser: {{ int64 . }}
  {{- end }}
  {{- with .Values.security.runAsGroup }}
  runAsGroup: {{ int64 . }}
  {{- end }}
  {{- with .Values.security.fsGroup }}
  fsGroup: {{ int64 . }}
  fsGroupChangePolicy: OnRootMismatch
  {{- end }}
  seccompProfile: { type: RuntimeDefault }
{{- end -}}

{{/* And of a container. */}}
{{- define "trellis.container.security" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: { drop: [ALL] }
{{- end -}}

{{/* Where and beside whom a role's pods run. Called with (root, config, component) or (root, config, component, site). */}}
{{- define "trellis.pod.scheduling" -}}
{{- $root := index . 0 -}}{{- $config := index . 1 -}}
{{- include "trellis.image.pullSecrets" $root }}
terminationGracePeriodSeconds: {{ int64 $config.terminationGracePeriodSeconds }}
{{- with $config.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $config.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $config.affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
topologySpreadConstraints:
  {{- if $config.topologySpreadConstraints }}
  {{- toYaml $config.topologySpreadConstraints | nindent 2 }}
  {{- else }}
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels: {{- include "trellis.labels.selector" (concat (list $root) (slice . 2)) | nindent 8 }}
  {{- end }}
{{- with $config.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- end -}}

{{/* Where a pod of the command line runs, and how its image is pulled; empty by default. Called with the root. */}}
{{- define "trellis.pod.cli" -}}
{{- include "trellis.image.pullSecrets" . }}
{{- with .Values.cli.nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.cli.tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Labels and annotations of a role's pods. Called with (root, config, component) or with the site, too. */}}
{{- define "trellis.pod.labels" -}}
{{- $root := index . 0 -}}{{- $config := index . 1 -}}
{{- include "trellis.labels.selector" (concat (list $root) (slice . 2)) }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- with $config.podLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Probes of the operations port. Called with its name. */}}
{{- define "trellis.probes" -}}
startupProbe:
  httpGet: { path: /livez, port: {{ . }} }
  periodSeconds: 1
  failureThreshold: 120
livenessProbe:
  httpGet: { path: /livez, port: {{ . }} }
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: { path: /readyz, port: {{ . }} }
  periodSeconds: 2
  timeoutSeconds: 5
  failureThreshold: 3
{{- end -}}

{{/* Volumes for what programs write besides their state: the root file system is read-only. */}}
{{- define "trellis.scratch.volumes" -}}
- name: tmp
  emptyDir: {}
- name: var-tmp
  emptyDir: {}
{{- end -}}

{{- define "trellis.scratch.mounts" -}}
- { name: tmp, mountPath: /tmp }
- { name: var-tmp, mountPath: /var/tmp }
{{- end -}}

{{/* A claim for a StatefulSet's state. Called with (root, persistence). */}}
{{- define "trellis.state.claim" -}}
- metadata:
    name: state
  spec:
    accessModes: [ReadWriteOnce]
    {{- with .storageClass }}
    storageClassName: {{ . | quote }}
    {{- end }}
    resources:
      requests:
        storage: {{ .size | quote }}
{{- end -}}
