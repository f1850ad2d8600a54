{{/* What policies select by is the chart's. Called with (place, labels); a list in JSON. */}}
{{- define "trellis.validation.labels" -}}
{{- $said := list -}}
{{- range $name, $value := index . 1 | default dict -}}
  {{- if has $name (list "app.kubernetes.io/name" "app.kubernetes.io/instance" "app.kubernetes.io/component" "app.kubernetes.io/version" "app.kubernetes.io/managed-by" "app.kubernetes.io/part-of" "helm.sh/chart" "trellis/site") -}}
  {{- $said = append $said (printf "%s: %s is the chart's own, by which policies and Services know its pods; take another label." (index $ 0) $name) -}}
  {{- end -}}
{{- end -}}
{{- toJson $said -}}
{{- end -}}

{{/* Values that contradict each other end the rendering, each with a sentence that says what to do. */}}
{{- define "trellis.validation" -}}
{{- $values := .Values -}}
{{- $said := list -}}
{{- $source := $values.tls.source -}}
{{- range $place, $instead := .Files.Get "files/removed.yaml" | fromYaml -}}
  {{- $at := splitList "." $place -}}
  {{- $found := $values -}}
  {{- range initial $at }}{{ $found = get $found . }}{{ end -}}
  {{- if hasKey $found (last $at) -}}
  {{- $said = append $said (printf "%s: there is no such value; %s" $place $instead) -}}
  {{- end -}}
{{- end -}}

{{- $sites := list -}}
{{- range $values.supernodes }}{{ $sites = append $sites .name }}{{ end -}}

{{- if gt (int $values.superlink.replicas) 1 -}}
  {{- if $values.superlink.database.url -}}
  {{- $said = append $said "superlink.replicas: replicas on PostgreSQL are not offered by this version yet; set superlink.replicas to 1 and leave superlink.database.url empty." -}}
  {{- else -}}
  {{- $said = append $said "superlink.replicas: the SuperLink keeps its state in an SQLite database that one process has for itself; more than one replica would need PostgreSQL, which this version does not offer yet. Set superlink.replicas to 1." -}}
  {{- end -}}
{{- else if $values.superlink.database.url -}}
  {{- $said = append $said "superlink.database.url: this version keeps its state in SQLite only; leave superlink.database.url empty." -}}
{{- end -}}

{{- if not (or $values.superlink.enabled $values.supernodes) -}}
{{- $said = append $said "There is nothing to install: enable the superlink, or list a site in supernodes." -}}
{{- end -}}
{{- if and $values.serverapp.enabled (not $values.superlink.enabled) -}}
{{- $said = append $said "serverapp.enabled: a ServerApp process works for the SuperLink of its own release; set serverapp.enabled to false where superlink.enabled is." -}}
{{- end -}}
{{- if and $values.superlink.enabled $values.externalSuperlink.address -}}
{{- $said = append $said "externalSuperlink.address: sites join the SuperLink of this release; leave it empty, or set superlink.enabled and serverapp.enabled to false." -}}
{{- end -}}
{{- if and $values.supernodes (not $values.superlink.enabled) -}}
  {{- if not $values.externalSuperlink.address -}}
  {{- $said = append $said "externalSuperlink.address: say where these sites find their SuperLink, as host:port of its Fleet API, for example fl.example.org:9092." -}}
  {{- end -}}
  {{- $ca := or $values.externalSuperlink.caCertificate $values.externalSuperlink.caSecret.name -}}
  {{- if and (has $source (list "job" "certManager")) (not $ca) -}}
  {{- $said = append $said "externalSuperlink.caCertificate or externalSuperlink.caSecret.name: a site knows its SuperLink by the CA of its certificate; give the server's ca.crt." -}}
  {{- end -}}
  {{- if and $values.externalSuperlink.caCertificate $values.externalSuperlink.caSecret.name -}}
  {{- $said = append $said "externalSuperlink: give either caCertificate or caSecret.name, not both." -}}
  {{- end -}}
{{- end -}}

{{- if ne (len $sites) (len (uniq $sites)) -}}
{{- $said = append $said "supernodes: two sites have the same name; each needs its own." -}}
{{- end -}}
{{- if has "serverapp" $sites -}}
{{- $said = append $said "supernodes: no site can be named serverapp, which is the ServerApp process's name among those that show tokens; take another name." -}}
{{- end -}}
{{- range $place, $labels := dict "commonLabels" $values.commonLabels "superlink.podLabels" $values.superlink.podLabels "serverapp.podLabels" $values.serverapp.podLabels "supernode.podLabels" $values.supernode.podLabels "clientapp.podLabels" $values.clientapp.podLabels "keycloak.podLabels" $values.keycloak.podLabels -}}
  {{- $said = concat $said (include "trellis.validation.labels" (list $place $labels) | fromJsonArray) -}}
{{- end -}}
{{- range $site := $values.supernodes -}}
  {{- range tuple "supernode" "clientapp" -}}
  {{- $said = concat $said (include "trellis.validation.labels" (list (printf "supernodes: %s: %s.podLabels" $site.name .) (get (get $site . | default dict) "podLabels")) | fromJsonArray) -}}
  {{- end -}}
  {{- if gt (len (printf "%s-supernode-%s" (include "trellis.fullname" $) $site.name)) 52 -}}
  {{- $said = append $said (printf "supernodes: the names of %s would be longer than Kubernetes allows; take a shorter name for the site, or set fullnameOverride." $site.name) -}}
  {{- end -}}
  {{- $apps := include "trellis.site.clientapp" (list $ $site) | fromYaml -}}
  {{- if and $site.samePod $apps.autoscaling.enabled -}}
  {{- $said = append $said (printf "supernodes: %s has its apps in the SuperNode's pod, which is one; turn clientapp.autoscaling off for it, or leave out samePod." $site.name) -}}
  {{- end -}}
  {{- if and $site.samePod (gt (int $apps.replicas) 1) -}}
  {{- $said = append $said (printf "supernodes: %s has its apps in the SuperNode's pod, which is one; set its clientapp.replicas to 1 (clientapp.settings.slots: 2 works on two messages at once), or leave out samePod." $site.name) -}}
  {{- end -}}
{{- end -}}
{{- $fullname := include "trellis.fullname" . -}}
{{- if not (regexMatch "^[a-z]([a-z0-9-]*[a-z0-9])?$" $fullname) -}}
{{- $said = append $said (printf "fullnameOverride: Services cannot be named after the release %s; take a name of small letters, digits and dashes that begins with a letter, or set fullnameOverride to one." $fullname) -}}
{{- end -}}
{{- if gt (len $fullname) 39 -}}
{{- $said = append $said "fullnameOverride: the release's name is longer than 39 characters, and names made of it would be longer than Kubernetes allows; set fullnameOverride to a shorter one." -}}
{{- end -}}

{{- if and $values.tls.existingSecrets (ne $source "existingSecrets") -}}
{{- $said = append $said (printf "tls.existingSecrets goes with tls.source: existingSecrets, which is %s; change the one or leave out the other." $source) -}}
{{- end -}}
{{- $known := include "trellis.tls.roles" . | fromJsonArray -}}
{{- range $role, $secret := $values.tls.existingSecrets -}}
  {{- if not (has $role $known) -}}
  {{- $said = append $said (printf "tls.existingSecrets: there is no role %s here; there are %s." $role (join ", " $known)) -}}
  {{- end -}}
{{- end -}}

{{- if and $values.keycloak.enabled $values.oidc.externalIssuer -}}
{{- $said = append $said "oidc.externalIssuer: accounts come from one provider; leave it empty, or set keycloak.enabled to false." -}}
{{- end -}}
{{- if and $values.keycloak.enabled (not $values.superlink.enabled) -}}
{{- $said = append $said "keycloak.enabled: Keycloak belongs to the SuperLink; set it to false where superlink.enabled is." -}}
{{- end -}}
{{- if and (or $values.keycloak.enabled $values.oidc.externalIssuer) (eq $source "none") -}}
{{- $said = append $said "tls.source: accounts need TLS, or tokens could be read on the way; choose job, certManager or existingSecrets." -}}
{{- end -}}
{{- if and $values.keycloak.enabled (ne $values.keycloak.database.vendor "dev-file") (not (and $values.keycloak.database.url $values.keycloak.database.existingSecret)) -}}
{{- $said = append $said "keycloak.database: with a database give url (JDBC) and existingSecret (with username and password), too." -}}
{{- end -}}
{{- if and $values.keycloak.url (not (hasPrefix "https://" $values.keycloak.url)) -}}
{{- $said = append $said "keycloak.url: give the https:// address by which browsers reach Keycloak." -}}
{{- end -}}
{{- if and $values.tests.login.clientId (not $values.tests.login.secret.name) -}}
{{- $said = append $said "tests.login.secret.name: name the Secret with the secret of tests.login.clientId." -}}
{{- end -}}

{{- $ingress := $values.access.ingress -}}
{{- if $ingress.enabled -}}
  {{- if not (or $ingress.control.host $ingress.fleet.host $ingress.http.host $ingress.keycloak.host) -}}
  {{- $said = append $said "access.ingress: give at least one host, such as access.ingress.control.host." -}}
  {{- end -}}
  {{- if and (eq $ingress.tls "passthrough") (eq $source "none") (or $ingress.control.host $ingress.fleet.host $ingress.http.host) -}}
  {{- $said = append $said "access.ingress.tls: there is no TLS to pass through with tls.source none; set it to terminate." -}}
  {{- end -}}
  {{- if and $ingress.keycloak.host (not $ingress.keycloak.tlsSecret) -}}
  {{- $said = append $said "access.ingress.keycloak.tlsSecret: only Keycloak's public paths are routed, for which its TLS ends at the Ingress; name the Secret with the certificate of its host." -}}
  {{- end -}}
  {{- if and (eq $ingress.tls "terminate") (ne $source "none") -}}
    {{- range tuple "control" "fleet" "http" -}}
    {{- if and (index $ingress .).host (not (index $ingress .).tlsSecret) -}}
    {{- $said = append $said (printf "access.ingress.%s.tlsSecret: name the Secret with the certificate of its host, or set access.ingress.tls to passthrough." .) -}}
    {{- end -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- if $ingress.enabled -}}
  {{- $hosts := compact (list $ingress.control.host $ingress.fleet.host $ingress.http.host $ingress.keycloak.host) -}}
  {{- if ne (len $hosts) (len (uniq $hosts)) -}}
  {{- $said = append $said "access.ingress: control, fleet, http and keycloak are told apart by their hosts; give each its own." -}}
  {{- end -}}
{{- end -}}
{{- $gateway := $values.access.gateway -}}
{{- if $gateway.enabled -}}
  {{- if not $gateway.parentRefs -}}
  {{- $said = append $said "access.gateway.parentRefs: name the Gateway, as in [{ name: public, namespace: gateways }]." -}}
  {{- end -}}
  {{- if and (eq $gateway.tls "passthrough") (eq $source "none") -}}
  {{- $said = append $said "access.gateway.tls: there is no TLS to pass through with tls.source none; set it to terminate." -}}
  {{- end -}}
  {{- if and (ne $source "none") (or (eq $gateway.tls "terminate") $gateway.keycloak.hostnames) (not $gateway.backendCaConfigMap) -}}
  {{- $said = append $said "access.gateway.backendCaConfigMap: name the ConfigMap with the SuperLink's ca.crt, by which the Gateway knows what it connects to." -}}
  {{- end -}}
{{- end -}}

{{- $routed := or (and $ingress.enabled $ingress.keycloak.host) (and $gateway.enabled $gateway.keycloak.hostnames) -}}
{{- if and $routed $values.keycloak.enabled $values.networkPolicy.enabled (not $values.networkPolicy.keycloak.from) (not (include "trellis.keycloak.published" .)) -}}
{{- $said = append $said "networkPolicy.keycloak.from: Keycloak is closed to all but the SuperLink; name the pods of the Ingress or Gateway, as in [{ namespaceSelector: { matchLabels: { kubernetes.io/metadata.name: ingress-nginx } } }]." -}}
{{- end -}}

{{- if $said -}}
{{- fail (printf "\n\n%s\n" (join "\n" $said)) -}}
{{- end -}}
{{- end -}}
