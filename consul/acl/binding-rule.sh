#!/usr/bin/env bash
# Lets the tasks of one Nomad job log in to Consul with their workload identity and get the rights of
# policies/spegel.hcl.
#
#   acl/binding-rule.sh [JOB] [AUTH_METHOD] [NAMESPACE]       (default: spegel nomad-workloads default)
#
# The auth method is the one that `nomad setup consul` makes. Needs a token with acl:write, in CONSUL_HTTP_TOKEN.
# May be run again: what exists is kept, the policy's rules are brought up to date, and a rule for jobs of this name in
# every namespace is deleted, because any team may have such a job.
set -euo pipefail
cd "$(dirname "$0")/.."

job=${1:-spegel} method=${2:-nomad-workloads} namespace=${3:-default}
# the identity of a task and not of a service, which Nomad uses for its own registrations
every_namespace="value.nomad_job_id==\"$job\" and \"nomad_service\" not in value"
selector="value.nomad_namespace==\"$namespace\" and $every_namespace"

# Prints the ids of the rules that give role spegel to exactly this selector.
rules() {
  consul acl binding-rule list -method "$method" | SELECTOR=$1 awk '
    /^[^ ]/ { id = substr($1, 1, length($1) - 1) }
    $1 == "BindName:" { role = $2 }
    sub(/^ *Selector: +/, "") && role == "spegel" && $0 == ENVIRON["SELECTOR"] { print id }'
}

consul acl auth-method read -name "$method" >/dev/null ||
  { echo "binding-rule.sh: no auth method $method: run 'nomad setup consul' first" >&2; exit 1; }

if consul acl policy read -name spegel >/dev/null 2>&1; then
  consul acl policy update -name spegel -rules @policies/spegel.hcl >/dev/null
else
  consul acl policy create -name spegel -rules @policies/spegel.hcl >/dev/null
fi
consul acl role read -name spegel >/dev/null 2>&1 ||
  consul acl role create -name spegel -policy-name spegel -description "spegel-consul's sidecars" >/dev/null

tasks="tasks of job $job in namespace $namespace"
found=$(rules "$selector")
wide=$(rules "$every_namespace")
if [ -n "$found" ]; then
  echo "$tasks already log in with $method as role spegel"
else
  consul acl binding-rule create -method "$method" -bind-type role -bind-name spegel -selector "$selector" >/dev/null
  echo "$tasks log in with $method as role spegel"
fi
for id in $wide; do
  consul acl binding-rule delete -id "$id" >/dev/null
  echo "deleted the rule for jobs $job of every namespace"
done
