{{/* Folder of the bundle in the container. */}}
{{- define "polyhead.bundlePath" -}}
{{- list "/bundles" .Values.bundle.path | compact | join "/" -}}
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
{{- if .Values.bundle.digest }}
# The server verifies that the files match bundle.json, and this that bundle.json is the one that was chosen.
- name: verify-bundle
  image: {{ include "polyhead.image" . }}
  {{- with .Values.image.pullPolicy }}
  imagePullPolicy: {{ . }}
  {{- end }}
  command:
    - python
    - -c
    - |
      import sys
      from pathlib import Path
      import polyhead_bundle
      path, expected = sys.argv[1:]
      digest = polyhead_bundle.load(Path(path)).digest
      if digest != expected:
          sys.exit(f"{path} has the digest {digest}, and bundle.digest is {expected}")
    - {{ include "polyhead.bundlePath" . }}
    - {{ .Values.bundle.digest | quote }}
  resources:
    requests: {cpu: 100m, memory: 128Mi}
    limits: {cpu: "1", memory: 256Mi}
  securityContext:
    {{- include "polyhead.containerSecurityContext" . | nindent 4 }}
  volumeMounts:
    - name: bundles
      mountPath: /bundles
      readOnly: true
{{- end }}
{{- end -}}
