{{/* Environment of the server. */}}
{{- define "polyhead.env" -}}
- name: POLYHEAD_LISTEN
  value: 0.0.0.0:50051
{{- if .Values.http.enabled }}
- name: POLYHEAD_HTTP_LISTEN
  value: 0.0.0.0:8080
{{- end }}
{{- if .Values.metrics.enabled }}
- name: POLYHEAD_METRICS_LISTEN
  value: 0.0.0.0:9464
{{- end }}
- name: POLYHEAD_DRAIN_TIMEOUT_S
  value: {{ .Values.drain.timeoutSeconds | quote }}
- name: POLYHEAD_DRAIN_DELAY_S
  value: {{ .Values.drain.delaySeconds | quote }}
- name: ORT_DISABLE_TELEMETRY
  value: "1"
{{- if gt (int .Values.workers) 1 }}
- name: POLYHEAD_WORKERS
  value: {{ .Values.workers | quote }}
{{- end }}
{{- with .Values.dialects }}
- name: POLYHEAD_DIALECTS
  value: {{ join "," . }}
{{- end }}
{{- if .Values.tls.secretName }}
- name: POLYHEAD_TLS_CERT
  value: /tls/tls.crt
- name: POLYHEAD_TLS_KEY
  value: /tls/tls.key
{{- if .Values.tls.clientCa }}
- name: POLYHEAD_TLS_CLIENT_CA
  value: /tls/ca.crt
# The client certificate of the probes.
- name: POLYHEAD_CERT
  value: /probe-tls/tls.crt
- name: POLYHEAD_KEY
  value: /probe-tls/tls.key
{{- end }}
{{- else }}
- name: POLYHEAD_ALLOW_PLAINTEXT
  value: "true"
{{- end }}
{{- if .Values.apiKeys.secretName }}
- name: POLYHEAD_API_KEYS
  value: /api-keys/keys.toml
{{- if not .Values.tls.secretName }}
- name: POLYHEAD_ALLOW_PLAINTEXT_KEYS
  value: "true"
{{- end }}
{{- with .Values.apiKeys.probeSecretName }}
# The API key of the probes.
- name: POLYHEAD_API_KEY
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: key
{{- end }}
{{- end }}
{{- range $flag, $value := .Values.flags }}
- name: POLYHEAD_{{ $flag | upper | replace "-" "_" }}
  # YAML's numbers are floats here, which print large integers as 1e+06.
  value: {{ (and (kindIs "float64" $value) (eq (floor $value) $value)) | ternary (int64 $value) $value | toString | quote }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/*
The startup probe allows 2 minutes. The readiness probe asks whether to send calls: not while the server loads or drains. The
liveness probe asks whether the process is alive: a server that is merely not ready must not be killed.
*/}}
{{- define "polyhead.probes" -}}
{{- if .Values.tls.secretName -}}
startupProbe:
  {{- include "polyhead.tlsProbe" . | nindent 2 }}
  failureThreshold: 12
readinessProbe:
  {{- include "polyhead.tlsProbe" . | nindent 2 }}
livenessProbe:
  tcpSocket:
    port: grpc
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
{{- else -}}
startupProbe:
  grpc:
    port: 50051
  periodSeconds: 2
  failureThreshold: 60
readinessProbe:
  grpc:
    port: 50051
    service: polyhead.v1.InferenceService
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 2
livenessProbe:
  grpc:
    port: 50051
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
{{- end -}}
{{- end -}}

{{- define "polyhead.tlsProbe" -}}
exec:
  command: [polyhead, info, --ca, /tls/ca.crt, --server-name, {{ .Values.tls.serverName | quote }}]
periodSeconds: 10
timeoutSeconds: 5
{{- end -}}
