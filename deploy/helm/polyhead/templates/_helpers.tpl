{{- define "polyhead.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Name of every object: that of the release, with the chart's name unless the release's contains it. */}}
{{- define "polyhead.fullname" -}}
{{- $name := include "polyhead.name" . -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains $name .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "polyhead.selectorLabels" -}}
app.kubernetes.io/name: {{ include "polyhead.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "polyhead.labels" -}}
{{ include "polyhead.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "polyhead.image" -}}
{{- if .Values.image.digest -}}
{{ .Values.image.repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "polyhead.autoscaled" -}}
{{- if or .Values.autoscaling.hpa.enabled .Values.autoscaling.keda.enabled -}}true{{- end -}}
{{- end -}}

{{/* The container's restrictions, of the server and of the init container that runs its image. */}}
{{- define "polyhead.containerSecurityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: ["ALL"]
{{- end -}}

{{/* Contradictions that the schema of the values cannot express. */}}
{{- define "polyhead.validate" -}}
{{- $bundle := .Values.bundle -}}
{{- $sources := list -}}
{{- range $name, $value := dict "bundle.persistentVolumeClaim" $bundle.persistentVolumeClaim "bundle.image.reference" $bundle.image.reference "bundle.uri.source" $bundle.uri.source -}}
{{- if $value }}{{ $sources = append $sources $name }}{{ end -}}
{{- end -}}
{{- if ne (len $sources) 1 -}}
{{- fail (printf "set exactly one source of the bundle: bundle.persistentVolumeClaim, bundle.image.reference or bundle.uri.source; set: %s" (join ", " $sources | default "none")) -}}
{{- end -}}
{{- if $bundle.models -}}
{{- if $bundle.uri.source }}{{ fail "bundle.models requires bundle.persistentVolumeClaim or bundle.image.reference: a URI is one bundle" }}{{ end -}}
{{- if or $bundle.path $bundle.digest }}{{ fail "bundle.models excludes bundle.path and bundle.digest: each model has a path, and may have a digest" }}{{ end -}}
{{- if ne (int .Values.workers) 1 }}{{ fail "bundle.models requires workers=1: workers serve one model" }}{{ end -}}
{{- end -}}
{{- if and $bundle.uri.source (not $bundle.digest) -}}
{{- fail "bundle.uri.source requires bundle.digest, the field `digest` of bundle.json" -}}
{{- end -}}
{{- $policy := .Values.networkPolicy -}}
{{- if and $policy.enabled (not $policy.egress) -}}
{{- if $bundle.uri.source }}{{ fail "bundle.uri.source requires networkPolicy.egress with rules for the storage and for DNS" }}{{ end -}}
{{- if index .Values.flags "otlp-endpoint" }}{{ fail "the flag otlp-endpoint requires networkPolicy.egress with rules for the collector and for DNS" }}{{ end -}}
{{- end -}}
{{- if and .Values.tls.secretName (not .Values.tls.serverName) -}}
{{- fail "tls.secretName requires tls.serverName, a name in the certificate" -}}
{{- end -}}
{{- if and .Values.tls.clientCa (not .Values.tls.secretName) -}}
{{- fail "tls.clientCa requires tls.secretName" -}}
{{- end -}}
{{- if and .Values.tls.clientCa (not .Values.tls.probeSecretName) -}}
{{- fail "tls.clientCa requires tls.probeSecretName, the client certificate of the probes" -}}
{{- end -}}
{{- if and .Values.apiKeys.secretName (not .Values.tls.secretName) (not .Values.apiKeys.allowPlaintext) -}}
{{- fail "apiKeys.secretName requires tls.secretName, or apiKeys.allowPlaintext=true where the network is trusted" -}}
{{- end -}}
{{- if and .Values.apiKeys.secretName .Values.tls.secretName (not .Values.apiKeys.probeSecretName) -}}
{{- fail "with TLS, apiKeys.secretName requires apiKeys.probeSecretName, a key with the scope info for the probes" -}}
{{- end -}}
{{- if and .Values.autoscaling.hpa.enabled .Values.autoscaling.keda.enabled -}}
{{- fail "enable one of autoscaling.hpa and autoscaling.keda: KEDA creates a HorizontalPodAutoscaler of its own" -}}
{{- end -}}
{{- if gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas) -}}
{{- fail "autoscaling.minReplicas exceeds autoscaling.maxReplicas" -}}
{{- end -}}
{{- if and .Values.metrics.serviceMonitor.enabled (not .Values.metrics.enabled) -}}
{{- fail "metrics.serviceMonitor.enabled requires metrics.enabled" -}}
{{- end -}}
{{- if ge (int .Values.drain.delaySeconds) (int .Values.drain.timeoutSeconds) -}}
{{- fail "drain.delaySeconds must be less than drain.timeoutSeconds" -}}
{{- end -}}
{{- end -}}
