#!/usr/bin/env bash
# Lets the tasks of one Nomad job log in to Consul with their workload identity and get the rights of
# policies/spegel.hcl.
#
#   acl/binding-rule.sh [JOB] [AUTH_METHOD]       (default: spegel nomad-workloads)
#
# The auth method is the one that `nomad setup consul` makes. Needs a token with acl:write, in CONSUL_HTTP_TOKEN.
# May be run again: what exists is kept, the policy's rules are brought up to date.
set -euo pipefail
cd "$(dirname "$0")/.."

job=${1:-spegel} method=${2:-nomad-workloads}
# the identity of a task and not of a service, which Nomad uses for its own registrations
selector="value.nomad_job_id==\"$job\" and \"nomad_service\" not in value"

consul acl auth-method read -name "$method" >/dev/null ||
  { echo "binding-rule.sh: no auth method $method: run 'nomad setup consul' first" >&2; exit 1; }

if consul acl policy read -name spegel >/dev/null 2>&1; then
  consul acl policy update -name spegel -rules @policies/spegel.hcl >/dev/null
else
  consul acl policy create -name spegel -rules @policies/spegel.hcl >/dev/null
fi
consul acl role read -name spegel >/dev/null 2>&1 ||
  consul acl role create -name spegel -policy-name spegel -description "spegel-consul's sidecars" >/dev/null

if grep -qF "$selector" <<<"$(consul acl binding-rule list -method "$method")"; then
  echo "tasks of job $job already log in with $method as role spegel"
else
  consul acl binding-rule create -method "$method" -bind-type role -bind-name spegel -selector "$selector" >/dev/null
  echo "tasks of job $job log in with $method as role spegel"
fi
