{{/* The configuration file of the key service, and what the schema cannot say about it. */}}

{{- define "coffer.checks" -}}
{{- $providers := .Values.providers -}}
{{- if and $providers (not .Values.clusterId) (not (include "coffer.hasClusterKey" .)) -}}
{{- fail "clusterId: a UUID is needed, as no provider is a cluster key: uuidgen makes one. It is bound into every key, so keep it" -}}
{{- end -}}
{{- if and (gt (len $providers) 1) (not .Values.defaultProvider) -}}
{{- fail (printf "defaultProvider: one of %s is needed, as there is more than one" (keys $providers | sortAlpha | join ", ")) -}}
{{- end -}}
{{- if and .Values.defaultProvider (not (hasKey ($providers | default (dict "main" 1)) .Values.defaultProvider)) -}}
{{- fail (printf "defaultProvider: %s is no provider" .Values.defaultProvider) -}}
{{- end -}}
{{- if and (hasKey $providers "store") (dig "store" "existingSecret" "" $providers) .Values.store.existingSecret -}}
{{- fail "providers.store.existingSecret: secrets/store/ is where the store's own Secret is: give the provider another name" -}}
{{- end -}}
{{- if and (include "coffer.hasClusterKey" .) (not .Values.setup.enabled) (not .Values.keys.existingSecret) -}}
{{- fail "keys.existingSecret: needed, as setup.enabled is false and a provider is a cluster key" -}}
{{- end -}}
{{- if and (not .Values.setup.enabled) (not .Values.tls.existingSecret) (not .Values.certManager.enabled) -}}
{{- fail "tls.existingSecret: needed, as setup.enabled and certManager.enabled are false" -}}
{{- end -}}
{{- if and .Values.tls.existingSecret .Values.certManager.enabled -}}
{{- fail "certManager.enabled: tls.existingSecret brings a certificate already: only one of them" -}}
{{- end -}}
{{- if and .Values.certManager.enabled (not .Values.certManager.issuerRef.name) -}}
{{- fail "certManager.issuerRef.name: needed, as certManager.enabled is true" -}}
{{- end -}}
{{- if and .Values.tls.authority .Values.tls.authorityConfigMap -}}
{{- fail "tls.authority: tls.authorityConfigMap brings the authority already: only one of them" -}}
{{- end -}}
{{- $own := or .Values.tls.existingSecret .Values.certManager.enabled -}}
{{- $authority := or .Values.tls.authority .Values.tls.authorityConfigMap -}}
{{- if and $own (not $authority) -}}
{{- fail "tls.authority or tls.authorityConfigMap: needed with a certificate of your own: whom nodes and controller are to trust" -}}
{{- end -}}
{{- if and $authority (not $own) -}}
{{- fail "tls.authority, tls.authorityConfigMap: for a certificate of your own only (tls.existingSecret or certManager)" -}}
{{- end -}}
{{- with .Values.keyservice.auditLog -}}
{{- $log := . -}}
{{- $mounted := false -}}
{{- range $.Values.keyservice.extraVolumeMounts -}}
{{- if hasPrefix (printf "%s/" (trimSuffix "/" .mountPath)) $log -}}{{- $mounted = true -}}{{- end -}}
{{- end -}}
{{- if not $mounted -}}
{{- fail (printf "keyservice.auditLog: %s is on no volume of keyservice.extraVolumeMounts, and the rest cannot be written" $log) -}}
{{- end -}}
{{- end -}}
{{- if and (eq .Values.store.type "filesystem") (gt (int .Values.keyservice.replicas) 1) -}}
{{- fail "keyservice.replicas: 1 at most with store.type filesystem, which only one key service may use" -}}
{{- end -}}
{{- end -}}

{{- define "coffer.config" -}}
{{- $name := include "coffer.fullname" . -}}
{{- $tls := dict "address" (include "coffer.listen" (list .Values.keyservice.bindAddress 7443))
      "certificate" "/etc/coffer/tls/tls.crt" "privateKey" "/etc/coffer/tls/tls.key" -}}
{{- $listen := dict "tls" $tls "http" (include "coffer.listen" (list .Values.keyservice.bindAddress 9811)) -}}
{{- $kubernetes := dict "audience" "coffer"
      "nodeAccounts" (list (printf "%s/%s-node" .Release.Namespace $name))
      "controllerAccounts" (list (printf "%s/%s-controller" .Release.Namespace $name))
      "drivers" (list "coffer.csi")
      "reviewExpiry" .Values.keyservice.reviewExpiry
      "requestsPerSecond" .Values.keyservice.requestsPerSecond -}}
{{- $providers := dict -}}
{{- range $name, $provider := .Values.providers | default (dict "main" (dict "type" "cluster-key")) -}}
{{- if $provider -}}
{{- $provider = omit $provider "existingSecret" -}}
{{- if and (eq $provider.type "cluster-key") (not $provider.file) -}}
{{- $provider = set $provider "file" "/etc/coffer/cluster-key/cluster-key.json" -}}
{{- end -}}
{{- $_ := set $providers $name $provider -}}
{{- end -}}
{{- end -}}
{{- $config := dict "listen" $listen "kubernetes" $kubernetes "providers" $providers "store" (omit .Values.store "existingSecret") -}}
{{- with .Values.defaultProvider }}{{- $_ := set $config "defaultProvider" . -}}{{- end -}}
{{- with .Values.clusterId }}{{- $_ := set $config "clusterId" . -}}{{- end -}}
{{- with .Values.policies }}{{- $_ := set $config "policies" . -}}{{- end -}}
{{- with .Values.keyservice.auditLog }}{{- $_ := set $config "auditLog" . -}}{{- end -}}
{{- toYaml (mustMergeOverwrite $config (deepCopy .Values.config)) -}}
{{- end -}}
