{{/* Names, labels and images. */}}

{{- define "coffer.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "coffer.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "coffer.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "coffer.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* (list . "component") */}}
{{- define "coffer.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "coffer.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "coffer.labels" -}}
{{- $root := index . 0 -}}
{{ include "coffer.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- with $root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* (list . "component") of an object in the release's namespace: its name and labels. */}}
{{- define "coffer.meta" -}}
name: {{ include "coffer.fullname" (index . 0) }}-{{ index . 1 }}
namespace: {{ (index . 0).Release.Namespace }}
labels:
  {{- include "coffer.labels" . | nindent 2 }}
{{- end -}}

{{/* The same of an object of the whole cluster. */}}
{{- define "coffer.clusterMeta" -}}
name: {{ include "coffer.fullname" (index . 0) }}-{{ index . 1 }}
labels:
  {{- include "coffer.labels" . | nindent 2 }}
{{- end -}}

{{/* (list . .Values.images.NAME) */}}
{{- define "coffer.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- $name := printf "%s/%s" ($image.registry | default $root.Values.images.registry) $image.repository -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $name $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name ($image.tag | default $root.Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{/* Where callers find the key service. */}}
{{- define "coffer.service" -}}
{{- printf "%s-keyservice.%s.svc" (include "coffer.fullname" .) .Release.Namespace -}}
{{- end -}}

{{/* An address and a port; an address of IPv6 stands in brackets. */}}
{{- define "coffer.listen" -}}
{{- $address := index . 0 -}}
{{- if contains ":" $address -}}{{- printf "[%s]:%v" $address (index . 1) -}}{{- else -}}{{- printf "%s:%v" $address (index . 1) -}}{{- end -}}
{{- end -}}

{{/* Which Secrets and ConfigMaps hold the key, the certificate and its authority. */}}
{{- define "coffer.keySecret" -}}
{{- .Values.keys.existingSecret | default (printf "%s-cluster-key" (include "coffer.fullname" .)) -}}
{{- end -}}

{{- define "coffer.tlsSecret" -}}
{{- .Values.tls.existingSecret | default (printf "%s-keyservice-tls" (include "coffer.fullname" .)) -}}
{{- end -}}

{{- define "coffer.authority" -}}
{{- .Values.tls.authorityConfigMap | default (printf "%s-authority" (include "coffer.fullname" .)) -}}
{{- end -}}

{{/* "yes" where a provider is a cluster key. */}}
{{- define "coffer.hasClusterKey" -}}
{{- $has := empty .Values.providers -}}
{{- range .Values.providers -}}
{{- if and . (eq .type "cluster-key") -}}{{- $has = true -}}{{- end -}}
{{- end -}}
{{- if $has -}}yes{{- end -}}
{{- end -}}

{{/* "yes" where the hook has a key, or a certificate, to make. */}}
{{- define "coffer.makesKey" -}}
{{- /* The hook sees no records but VolumeKeys: over others it makes a key when Coffer is installed, and never later. */ -}}
{{- $blind := and .Release.IsUpgrade (ne .Values.store.type "kubernetes") -}}
{{- if and .Values.setup.enabled (include "coffer.hasClusterKey" .) (not .Values.keys.existingSecret) (not $blind) -}}yes{{- end -}}
{{- end -}}

{{- define "coffer.makesCertificate" -}}
{{- if and .Values.setup.enabled (not .Values.tls.existingSecret) (not .Values.certManager.enabled) -}}yes{{- end -}}
{{- end -}}
