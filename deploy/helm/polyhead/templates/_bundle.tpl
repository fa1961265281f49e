{{/* Folder of the bundle in the container. */}}
{{- define "polyhead.bundlePath" -}}
{{- list "/bundles" .Values.bundle.path | compact | join "/" -}}
{{- end -}}

{{/* Positional arguments of the server: the bundle, or the name and the bundle of each model. */}}
{{- define "polyhead.bundleArgs" -}}
{{- range .Values.bundle.models -}}
- {{ printf "%s=/bundles/%s" .name .path }}
{{ else -}}
- {{ include "polyhead.bundlePath" . }}
{{ end -}}
{{- end -}}

{{/* Each folder whose digest is known, followed by that digest. */}}
{{- define "polyhead.bundleDigests" -}}
{{- if .Values.bundle.digest -}}
- {{ include "polyhead.bundlePath" . }}
- {{ .Values.bundle.digest | quote }}
{{ end -}}
{{- range .Values.bundle.models -}}
{{- if .digest -}}
- /bundles/{{ .path }}
- {{ .digest | quote }}
{{ end -}}
{{- end -}}
{{- end -}}

{{- define "polyhead.bundleVolume" -}}
{{- if .Values.bundle.persistentVolumeClaim -}}
persistentVolumeClaim:
  claimName: {{ .Values.bundle.persistentVolumeClaim }}
  readOnly: true
{{- else if .Values.bundle.image.reference -}}
image:
  reference: {{ .Values.bundle.image.reference }}
  pullPolicy: {{ .Values.bundle.image.pullPolicy }}
{{- else -}}
emptyDir:
  sizeLimit: {{ .Values.bundle.uri.sizeLimit }}
{{- end -}}
{{- end -}}

{{- define "polyhead.initContainers" -}}
{{- if .Values.bundle.uri.source }}
- name: download-bundle
  image: {{ .Values.bundle.uri.image }}
  args:
    - {{ .Values.bundle.uri.source | quote }}
    - {{ include "polyhead.bundlePath" . }}
  env:
    # The root file system is read-only: caches of the download go where the bundle goes.
    - name: HOME
      value: /tmp
  {{- with .Values.bundle.uri.envFrom }}
  envFrom:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  resources:
    {{- toYaml .Values.bundle.uri.resources | nindent 4 }}
  securityContext:
    {{- include "polyhead.containerSecurityContext" . | nindent 4 }}
  volumeMounts:
    - name: bundles
      mountPath: /bundles
    - name: download
      mountPath: /tmp
{{- end }}
{{- with include "polyhead.bundleDigests" . }}
# The server verifies that the files match bundle.json, and this that bundle.json is the one that was chosen.
- name: verify-bundle
  image: {{ include "polyhead.image" $ }}
  {{- with $.Values.image.pullPolicy }}
  imagePullPolicy: {{ . }}
  {{- end }}
  command:
    - python
    - -c
    - |
      import sys
      from pathlib import Path
      import polyhead_bundle
      for path, expected in zip(sys.argv[1::2], sys.argv[2::2]):
          digest = polyhead_bundle.load(Path(path)).digest
          if digest != expected:
              sys.exit(f"{path} has the digest {digest}, and the chart's values state {expected}")
    {{- . | trim | nindent 4 }}
  resources:
    requests: {cpu: 100m, memory: 128Mi}
    limits: {cpu: "1", memory: 256Mi}
  securityContext:
    {{- include "polyhead.containerSecurityContext" $ | nindent 4 }}
  volumeMounts:
    - name: bundles
      mountPath: /bundles
      readOnly: true
{{- end }}
{{- end -}}
