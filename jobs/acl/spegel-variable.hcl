# Nomad: lets the job lock and write its leader variable. A task may read variables below its own job's path without a
# policy, but never write them. `nomad acl policy apply -namespace default -job spegel spegel-variable <this file>`
namespace "default" {
  variables {
    path "nomad/jobs/spegel/leader" {
      capabilities = ["read", "write"]
    }
  }
}
