{{/* Name of everything the chart makes. */}}
{{- define "mayastor.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels by which pods are selected; never changed. Takes a dict of root and component. */}}
{{- define "mayastor.selector" -}}
app.kubernetes.io/name: {{ .root.Chart.Name }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end -}}

{{/* All labels. Takes a dict of root and component. */}}
{{- define "mayastor.labels" -}}
{{ include "mayastor.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Image of a program of ours. Takes a dict of root and component. */}}
{{- define "mayastor.image" -}}
{{- $image := .root.Values.image -}}
{{- printf "%s/%s/%s:%s" $image.registry $image.repo .component ($image.tag | default .root.Chart.AppVersion) -}}
{{- end -}}

{{- define "mayastor.pullSecrets" -}}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "mayastor.priorityClass" -}}
{{- if .Values.priorityClass.create }}
priorityClassName: {{ include "mayastor.fullname" . }}-cluster-critical
{{- end }}
{{- end -}}

{{/* Both. */}}
{{- define "mayastor.pod" -}}
{{ include "mayastor.pullSecrets" . | trim }}
{{ include "mayastor.priorityClass" . | trim }}
{{- end -}}

{{/* Name of an etcd member's address. Takes a dict of root and index. */}}
{{- define "mayastor.etcd.host" -}}
{{- $name := include "mayastor.fullname" .root -}}
{{- printf "%s-etcd-%d.%s-etcd-headless.%s.svc" $name (int .index) $name .root.Release.Namespace -}}
{{- end -}}

{{/* True where etcd and its clients show each other certificates, else empty. */}}
{{- define "mayastor.etcd.tls" -}}
{{- if .Values.etcd.externalUrl -}}
{{- if hasPrefix "https://" .Values.etcd.externalUrl }}true{{ end -}}
{{- else if .Values.etcd.auth.client.secureTransport -}}
true
{{- end -}}
{{- end -}}

{{/* Secret with the certificate of etcd or of one of its users. Takes a dict of root and user. */}}
{{- define "mayastor.etcd.secret" -}}
{{- $given := index .root.Values.etcd.auth.client.existingSecrets .user -}}
{{- if .root.Values.etcd.externalUrl -}}
{{- required (printf "etcd.externalUrl is https: name the Secret (ca.crt, tls.crt, tls.key) of %s in etcd.auth.client.existingSecrets" .user) $given -}}
{{- else -}}
{{- $given | default (printf "%s-etcd-%s" (include "mayastor.fullname" .root) .user) -}}
{{- end -}}
{{- end -}}

{{/* Arguments, mount and volume of a program that uses etcd; the volume takes a dict of root and user. */}}
{{- define "mayastor.etcd.arguments" -}}
{{- if include "mayastor.etcd.tls" . -}}
- --etcd-ca=/etc/etcd-client/ca.crt
- --etcd-cert=/etc/etcd-client/tls.crt
- --etcd-key=/etc/etcd-client/tls.key
{{- end -}}
{{- end -}}

{{- define "mayastor.etcd.mount" -}}
{{- if include "mayastor.etcd.tls" . -}}
- name: etcd-client
  mountPath: /etc/etcd-client
  readOnly: true
{{- end -}}
{{- end -}}

{{- define "mayastor.etcd.volume" -}}
{{- if include "mayastor.etcd.tls" .root -}}
- name: etcd-client
  secret:
    secretName: {{ include "mayastor.etcd.secret" . }}
{{- end -}}
{{- end -}}

{{/* Endpoints of etcd for clients, each member by name: a connection is not stuck at one that is gone. */}}
{{- define "mayastor.etcd.endpoints" -}}
{{- if .Values.etcd.externalUrl -}}
{{- .Values.etcd.externalUrl -}}
{{- else -}}
{{- $scheme := ternary "https" "http" (not (not (include "mayastor.etcd.tls" .))) -}}
{{- $endpoints := list -}}
{{- range $index := until (int .Values.etcd.replicaCount) -}}
{{- $endpoints = append $endpoints (printf "%s://%s:2379" $scheme (include "mayastor.etcd.host" (dict "root" $ "index" $index))) -}}
{{- end -}}
{{- join "," $endpoints -}}
{{- end -}}
{{- end -}}

{{/* Identity in etcd's keys. Not looked up in the cluster: tools that render without one would get another. */}}
{{- define "mayastor.clusterUid" -}}
{{- if .Values.etcd.externalUrl -}}
{{- required "clusterUid is needed with etcd.externalUrl: other clusters may use the same etcd" .Values.clusterUid -}}
{{- else -}}
{{- .Values.clusterUid | default "00000000-0000-0000-0000-000000000000" -}}
{{- end -}}
{{- end -}}

{{/* Name of the Service of the operator that leads. */}}
{{- define "mayastor.operator.host" -}}
{{- printf "%s-operator.%s.svc" (include "mayastor.fullname" .) .Release.Namespace -}}
{{- end -}}

{{/* What every container without special needs gets. */}}
{{- define "mayastor.restricted" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
capabilities:
  drop: [ALL]
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Spreads the pods of a component over nodes, where that can be. Takes a dict of root and component. */}}
{{- define "mayastor.spread" -}}
podAntiAffinity:
  preferredDuringSchedulingIgnoredDuringExecution:
    - weight: 100
      podAffinityTerm:
        topologyKey: kubernetes.io/hostname
        labelSelector:
          matchLabels: {{- include "mayastor.selector" . | nindent 12 }}
{{- end -}}

{{/* A budget that lets go of one pod at a time, and of broken ones always. Takes a dict of root and component. */}}
{{- define "mayastor.budget" -}}
{{- $capabilities := .root.Capabilities -}}
apiVersion: {{ $capabilities.APIVersions.Has "policy/v1" | ternary "policy/v1" "policy/v1beta1" }}
kind: PodDisruptionBudget
metadata:
  name: {{ include "mayastor.fullname" .root }}-{{ .component }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "mayastor.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  {{- if semverCompare ">=1.27-0" $capabilities.KubeVersion.Version }}
  # A pod that is not ready protects nothing, and must not hold up a drain.
  unhealthyPodEvictionPolicy: AlwaysAllow
  {{- end }}
  selector:
    matchLabels: {{- include "mayastor.selector" . | nindent 6 }}
{{- end -}}

{{/* A ServiceAccount. Takes a dict of root and component. */}}
{{- define "mayastor.serviceAccount" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "mayastor.fullname" .root }}-{{ .component }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "mayastor.labels" . | nindent 4 }}
{{- end -}}

{{/* Binds the role of a component's name to its ServiceAccount. Takes a dict of root, component and scope. */}}
{{- define "mayastor.binding" -}}
{{- $name := printf "%s-%s" (include "mayastor.fullname" .root) .component -}}
apiVersion: rbac.authorization.k8s.io/v1
kind: {{ .scope }}Binding
metadata:
  name: {{ $name }}
  {{- if eq .scope "Role" }}
  namespace: {{ .root.Release.Namespace }}
  {{- end }}
  labels: {{- include "mayastor.labels" . | nindent 4 }}
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: {{ .scope }}
  name: {{ $name }}
subjects:
  - kind: ServiceAccount
    name: {{ $name }}
    namespace: {{ .root.Release.Namespace }}
{{- end -}}

{{/* Whether the scheduler is told about free capacity: by CSIStorageCapacity v1, of Kubernetes 1.24. */}}
{{- define "mayastor.has.capacity" -}}
{{- and .Values.csi.controller.storageCapacity (semverCompare ">=1.24-0" .Capabilities.KubeVersion.Version) -}}
{{- end -}}

{{/* Whether there are VolumeAttributesClasses of the version that the sidecars know: v1, since 1.34. */}}
{{- define "mayastor.has.classes" -}}
{{- semverCompare ">=1.34-0" .Capabilities.KubeVersion.Version -}}
{{- end -}}

{{/* What serves figures with metrics.enabled, as a JSON list. */}}
{{- define "mayastor.measured" -}}
{{- $measured := list "operator" "io-engine" }}
{{- if or .Values.csi.enabled .Values.agents.ha.enabled }}
{{- $measured = append $measured "csi-node" }}
{{- end }}
{{- if .Values.agents.ha.enabled }}
{{- $measured = concat $measured (list "ha-cluster" "ha-node") }}
{{- end }}
{{- toJson $measured }}
{{- end }}
