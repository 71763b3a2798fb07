{{- /* What each container needs that speaks with the kernel. */ -}}
{{- define "quantum-nat.container" -}}
image: {{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  runAsUser: 0
  readOnlyRootFilesystem: true
  allowPrivilegeEscalation: false
  capabilities:
    drop: [ALL]
    add: [NET_ADMIN, NET_RAW]
resources: {{- toYaml .Values.resources | nindent 2 }}
volumeMounts:
  - {name: state, mountPath: {{ .Values.paths.state }}}
  - {name: namespaces, mountPath: /run/netns, mountPropagation: HostToContainer, readOnly: true}
  - {name: xtables, mountPath: /run/xtables.lock}
{{- end }}
