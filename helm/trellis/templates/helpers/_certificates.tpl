{{/* The Secret with the CAs. Called with the root. */}}
{{- define "trellis.certificates.authorities" -}}
{{- include "trellis.name" (list . "authorities") -}}
{{- end -}}

{{/* All Secrets that `trellis certs kubernetes` writes, as a list in JSON. */}}
{{- define "trellis.certificates.secrets" -}}
{{- $names := list (include "trellis.certificates.authorities" .) -}}
{{- range include "trellis.tls.roles" . | fromJsonArray }}{{ $names = append $names (include "trellis.tls.secret" (list $ .)) }}{{ end -}}
{{- toJson $names -}}
{{- end -}}

{{/*
What the pod that makes certificates needs besides itself: an account that may write these Secrets and no others, a way to
the API server, the CA of a SuperLink elsewhere. Called with (root, name, annotations).
*/}}
{{- define "trellis.certificates.needs" -}}
{{- $root := index . 0 -}}{{- $name := index . 1 -}}{{- $annotations := index . 2 -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ $name }}
  labels: {{- include "trellis.labels" (list $root "certificates") | nindent 4 }}
  annotations: {{- $annotations | nindent 4 }}
automountServiceAccountToken: false
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ $name }}
  labels: {{- include "trellis.labels" (list $root "certificates") | nindent 4 }}
  annotations: {{- $annotations | nindent 4 }}
rules:
  - apiGroups: [""]
    resources: [secrets]
    verbs: [create] # which cannot be bound to names
  - apiGroups: [""]
    resources: [secrets]
    verbs: [get, update]
    resourceNames: {{- include "trellis.certificates.secrets" $root | fromJsonArray | toYaml | nindent 6 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ $name }}
  labels: {{- include "trellis.labels" (list $root "certificates") | nindent 4 }}
  annotations: {{- $annotations | nindent 4 }}
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: Role, name: {{ $name }} }
subjects:
  - { kind: ServiceAccount, name: {{ $name }}, namespace: {{ $root.Release.Namespace }} }
{{- if $root.Values.networkPolicy.enabled }}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ $name }}
  labels: {{- include "trellis.labels" (list $root "certificates") | nindent 4 }}
  annotations: {{- $annotations | nindent 4 }}
spec:
  podSelector:
    matchLabels: {{- include "trellis.labels.selector" (list $root "certificates") | nindent 6 }}
  policyTypes: [Ingress, Egress]
  ingress: []
  egress:
    - ports:
        {{- range $root.Values.networkPolicy.apiServer.ports }}
        - { port: {{ int64 . }}, protocol: TCP }
        {{- end }}
      {{- with $root.Values.networkPolicy.apiServer.to }}
      to: {{- toYaml . | nindent 8 }}
      {{- end }}
{{- end }}
{{- if and (not $root.Values.superlink.enabled) $root.Values.externalSuperlink.caCertificate }}
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ $name }}
  labels: {{- include "trellis.labels" (list $root "certificates") | nindent 4 }}
  annotations: {{- $annotations | nindent 4 }}
data:
  ca.crt: {{ $root.Values.externalSuperlink.caCertificate | toJson }}
{{- end }}
{{- end -}}

{{/* The pod itself, as a template of a Job. Called with (root, name of what it needs). */}}
{{- define "trellis.certificates.pod" -}}
{{- $root := index . 0 -}}{{- $name := index . 1 -}}
{{- $external := not $root.Values.superlink.enabled -}}
metadata:
  labels: {{- include "trellis.labels" (list $root "certificates") | nindent 4 }}
spec:
  {{- include "trellis.pod.security" $root | replace "automountServiceAccountToken: false" "automountServiceAccountToken: true" | nindent 2 }}
  serviceAccountName: {{ $name }}
  restartPolicy: Never
  {{- include "trellis.pod.cli" $root | indent 2 }}
  containers:
    - name: certificates
      {{- include "trellis.image.fields" (list $root $root.Values.cli.image) | nindent 6 }}
      {{- include "trellis.container.security" $root | nindent 6 }}
      args:
        - trellis
        - certs
        - kubernetes
        - --namespace={{ $root.Release.Namespace }}
        - --authorities={{ include "trellis.certificates.authorities" $root }}
        - --days={{ int64 $root.Values.tls.job.days }}
        - --within={{ int64 $root.Values.tls.job.renewWithinDays }}
        - --label=app.kubernetes.io/name=trellis
        - --label=app.kubernetes.io/instance={{ $root.Release.Name }}
        - --label=app.kubernetes.io/component=certificates
        {{- if $external }}
        - --network-ca=/network/ca.crt
        {{- end }}
        {{- range $role := include "trellis.tls.roles" $root | fromJsonArray }}
        - {{ printf "%s=%s" $role (include "trellis.tls.secret" (list $root $role)) | quote }}
        {{- if has (first (splitList "-" $role)) (list "superlink" "supernode" "keycloak") }}
        {{- range include "trellis.tls.names" (list $root $role) | fromJsonArray }}
        - {{ printf "--name=%s=%s" $role . | quote }}
        {{- end }}
        {{- end }}
        {{- end }}
      resources: {{- toYaml $root.Values.tls.job.resources | nindent 8 }}
      volumeMounts:
        - { name: tmp, mountPath: /tmp }
        {{- if $external }}
        - { name: network, mountPath: /network, readOnly: true }
        {{- end }}
  volumes:
    - name: tmp # keys are in memory, never on a disk
      emptyDir: { medium: Memory, sizeLimit: 16Mi }
    {{- if $external }}
    - name: network
      {{- if $root.Values.externalSuperlink.caSecret.name }}
      secret:
        secretName: {{ $root.Values.externalSuperlink.caSecret.name | quote }}
        items: [{ key: {{ $root.Values.externalSuperlink.caSecret.key | quote }}, path: ca.crt }]
      {{- else }}
      configMap: { name: {{ $name }} }
      {{- end }}
    {{- end }}
{{- end -}}

{{/* Whether there is anything to make. Called with the root. */}}
{{- define "trellis.certificates.wanted" -}}
{{- if and (eq .Values.tls.source "job") (include "trellis.tls.roles" . | fromJsonArray) }}true{{ end -}}
{{- end -}}

{{/* What makes it come before anything else. */}}
{{- define "trellis.certificates.hook" -}}
helm.sh/hook: pre-install,pre-upgrade
helm.sh/hook-weight: "-5"
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
{{- end -}}
