#!/bin/sh
# Holds the files of this folder against the tools that read them for real, as far as they are here. No network.
#
#   sh deploy/lint.sh BIN      # BIN: folder with hadolint, yamllint, kubernetes-validate and polyhead-serve
set -eu

bin=$(cd "$1" && pwd)
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"$bin/hadolint" container/Dockerfile
"$bin/yamllint" --strict --config-file ../.yamllint.yaml .

# Every manifest but those that kustomize alone reads, and the ServiceMonitor, whose schema is not Kubernetes' own.
for file in $(find kubernetes -name '*.yaml' ! -name kustomization.yaml ! -name servicemonitor.yaml); do
  cp "$file" "$work/$(basename "$file")"
done
if command -v kubectl > /dev/null; then
  kubectl kustomize kubernetes/base > "$work/built.yaml"
  # The components, each by itself and all together, as a folder beside them would list them.
  cp -r kubernetes "$work/kubernetes"
  mkdir "$work/kubernetes/mine"
  for components in autoscaling monitoring autoscaling,../monitoring monitoring,../autoscaling; do
    echo "{resources: [../base], components: [../$components]}" > "$work/kubernetes/mine/kustomization.yaml"
    kubectl kustomize "$work/kubernetes/mine" > "$work/built-$(echo "$components" | tr -d ,./).yaml"
  done
else
  echo "lint-deploy: kubectl is not here, so the kustomizations were not built"
fi
"$bin/kubernetes-validate" --strict --quiet --no-warn "$work"/*.yaml

if command -v systemd-analyze > /dev/null; then
  # It wants the program to be there.
  sed "s,/opt/polyhead/bin,$bin," systemd/polyhead.service > "$work/polyhead.service"
  # An unknown directive is only a warning to it.
  said=$(systemd-analyze verify --man=no "$work/polyhead.service" 2>&1) || true
  if [ -n "$said" ]; then
    echo "$said"
    exit 1
  fi
else
  echo "lint-deploy: systemd-analyze is not here, so the unit was not verified"
fi
