{{/* What Pods have in common. */}}

{{/* (list . .Values.COMPONENT): where a Pod runs. */}}
{{- define "coffer.placement" -}}
{{- $root := index . 0 -}}
{{- $values := index . 1 -}}
enableServiceLinks: false
{{- with $root.Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* The Pod Security Standard "restricted", and a file system that nothing writes to. 65532 is what distroless images call nonroot. */}}
{{- define "coffer.restrictedPod" -}}
securityContext:
  runAsNonRoot: true
  runAsUser: 65532
  runAsGroup: 65532
  fsGroup: 65532
  seccompProfile:
    type: RuntimeDefault
{{- end -}}

{{- define "coffer.restrictedContainer" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
{{- end -}}

{{/* (list . .Values.COMPONENT.extraEnv) */}}
{{- define "coffer.env" -}}
{{- $root := index . 0 -}}
- name: COFFER_LOG_LEVEL
  value: {{ $root.Values.log.level }}
- name: COFFER_LOG_FORMAT
  value: {{ $root.Values.log.format }}
{{- with index . 1 }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "coffer.probes" -}}
# A start may take as long as the API server's answers.
startupProbe:
  httpGet:
    path: /healthz
    port: http
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  httpGet:
    path: /healthz
    port: http
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet:
    path: /readyz
    port: http
  periodSeconds: 5
  timeoutSeconds: 5
{{- end -}}

{{/* What a caller of the key service shows, and whom it trusts. */}}
{{- define "coffer.callerMounts" -}}
- name: token
  mountPath: /var/run/secrets/coffer
  readOnly: true
- name: authority
  mountPath: /etc/coffer/authority
  readOnly: true
{{- end -}}

{{- define "coffer.callerVolumes" -}}
- name: token
  projected:
    sources:
      # Good for the key service only, and only while this Pod is there; the kubelet renews it.
      - serviceAccountToken:
          audience: coffer
          expirationSeconds: 3600
          path: token
- name: authority
  configMap:
    name: {{ include "coffer.authority" . }}
    items:
      - key: ca.crt
        path: ca.crt
{{- end -}}

{{/* What the key service reads. */}}
{{- define "coffer.keyserviceMounts" -}}
- name: config
  mountPath: /etc/coffer/config.yaml
  subPath: config.yaml
  readOnly: true
- name: tls
  mountPath: /etc/coffer/tls
  readOnly: true
{{- if include "coffer.hasClusterKey" . }}
- name: cluster-key
  mountPath: /etc/coffer/cluster-key
  readOnly: true
{{- end }}
{{- range $name, $provider := .Values.providers }}
{{- if and $provider $provider.existingSecret }}
- name: secret-{{ $name }}
  mountPath: /etc/coffer/secrets/{{ $name }}
  readOnly: true
{{- end }}
{{- end }}
{{- if .Values.store.existingSecret }}
- name: secret-store
  mountPath: /etc/coffer/secrets/store
  readOnly: true
{{- end }}
{{- with .Values.keyservice.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "coffer.keyserviceVolumes" -}}
- name: config
  configMap:
    name: {{ include "coffer.fullname" . }}-keyservice
- name: tls
  secret:
    secretName: {{ include "coffer.tlsSecret" . }}
    defaultMode: 288 # 0440
    items:
      - key: tls.crt
        path: tls.crt
      - key: tls.key
        path: tls.key
{{- if include "coffer.hasClusterKey" . }}
- name: cluster-key
  secret:
    secretName: {{ include "coffer.keySecret" . }}
    defaultMode: 288 # 0440
{{- end }}
{{- range $name, $provider := .Values.providers }}
{{- if and $provider $provider.existingSecret }}
- name: secret-{{ $name }}
  secret:
    secretName: {{ $provider.existingSecret }}
    defaultMode: 288 # 0440
{{- end }}
{{- end }}
{{- with .Values.store.existingSecret }}
- name: secret-store
  secret:
    secretName: {{ . }}
    defaultMode: 288 # 0440
{{- end }}
{{- with .Values.keyservice.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}
