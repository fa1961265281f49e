#!/bin/sh
# Validates the files of this folder with the tools that consume them, as far as they are installed. Uses no network.
#
#   sh deploy/lint.sh BIN      # BIN: directory of hadolint, yamllint, kubernetes-validate and polyhead-serve
set -eu

bin=$(cd "$1" && pwd)
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$bin/hadolint" container/Dockerfile
"$bin/yamllint" --strict --config-file ../.yamllint.yaml .

# All manifests except kustomizations and the ServiceMonitor, whose schema is not part of Kubernetes.
for file in $(find kubernetes -name '*.yaml' ! -name kustomization.yaml ! -name servicemonitor.yaml); do
  cp "$file" "$work/$(basename "$file")"
done
if command -v kubectl > /dev/null; then
  kubectl kustomize kubernetes/base > "$work/built.yaml"
  # The components, each alone and in both orders together, as an overlay would list them.
  cp -r kubernetes "$work/kubernetes"
  mkdir "$work/kubernetes/overlay"
  for components in autoscaling monitoring autoscaling,../monitoring monitoring,../autoscaling; do
    echo "{resources: [../base], components: [../$components]}" > "$work/kubernetes/overlay/kustomization.yaml"
    kubectl kustomize "$work/kubernetes/overlay" > "$work/built-$(echo "$components" | tr -d ,./).yaml"
  done
else
  echo "lint-deploy: kubectl is not installed; the kustomizations were not built"
fi
"$bin/kubernetes-validate" --strict --quiet --no-warn "$work"/*.yaml

if command -v systemd-analyze > /dev/null; then
  # It requires the program to exist.
  sed "s,/opt/polyhead/bin,$bin," systemd/polyhead.service > "$work/polyhead.service"
  # It exits with 0 after an unknown directive, with a warning only.
  output=$(systemd-analyze verify --man=no "$work/polyhead.service" 2>&1) || true
  if [ -n "$output" ]; then
    echo "$output"
    exit 1
  fi
else
  echo "lint-deploy: systemd-analyze is not installed; the unit was not verified"
fi
