{{/* (list . "ACCOUNT"): what the hook, or the renewal, runs. */}}
{{- define "coffer.setupPod" -}}
{{- $root := index . 0 -}}
{{- $account := index . 1 -}}
serviceAccountName: {{ include "coffer.fullname" $root }}-{{ $account }}
restartPolicy: Never
{{- include "coffer.placement" (list $root (dict "nodeSelector" $root.Values.keyservice.nodeSelector
    "tolerations" $root.Values.keyservice.tolerations "affinity" $root.Values.keyservice.affinity)) | nindent 0 }}
{{ include "coffer.restrictedPod" $root }}
containers:
  - name: setup
    image: {{ include "coffer.image" (list $root $root.Values.images.coffer) }}
    imagePullPolicy: {{ $root.Values.images.pullPolicy }}
    args:
      - keys
      - init
      - --kubernetes={{ $root.Release.Namespace }}
      - --name={{ include "coffer.fullname" $root }}
      {{- if or (ne $account "setup") (not (include "coffer.makesKey" $root)) }}
      - --only=certificates
      {{- else if not (include "coffer.makesCertificate" $root) }}
      - --only=cluster-key
      {{- end }}
      {{- if include "coffer.makesCertificate" $root }}
      - --service-name={{ include "coffer.service" $root }}
      {{- end }}
    env:
      {{- include "coffer.env" (list $root list) | nindent 6 }}
    {{- include "coffer.restrictedContainer" $root | nindent 4 }}
    resources:
      {{- toYaml $root.Values.setup.resources | nindent 6 }}
{{- end -}}

{{/* Which objects the hook and the renewal may change, beside making new ones. */}}
{{- define "coffer.setupSecrets" -}}
{{- $name := include "coffer.fullname" . -}}
{{- if include "coffer.makesKey" . }}
- {{ $name }}-cluster-key
{{- end }}
{{- if include "coffer.makesCertificate" . }}
- {{ $name }}-authority
- {{ $name }}-keyservice-tls
{{- end }}
{{- end -}}
