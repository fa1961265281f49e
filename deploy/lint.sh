#!/bin/sh
# Validates the files of this folder with the tools that consume them, as far as they are installed. Uses no network.
#
#   sh deploy/lint.sh BIN      # BIN: directory of hadolint, yamllint, kubernetes-validate, check-jsonschema, polyhead-serve
set -eu

bin=$(cd "$1" && pwd)
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

PATH=$PWD/../build/deploy-tools/bin:$PATH # Helm, kubectl and Envoy of `make deploy-tools`

"$bin/hadolint" container/Dockerfile
"$bin/yamllint" --strict --config-file ../.yamllint.yaml .

# Manifests as they are and as they are rendered, checked together below.
manifests=$work/manifests
mkdir "$manifests"
cp -r kubernetes kserve kuberay "$manifests"

if command -v kubectl > /dev/null; then
  # The components, each alone and in both orders together, as an overlay would list them.
  cp -r kubernetes "$work/kubernetes"
  mkdir "$work/kubernetes/overlay"
  for components in autoscaling autoscaling-keda monitoring autoscaling,../monitoring monitoring,../autoscaling; do
    echo "{resources: [../base], components: [../$components]}" > "$work/kubernetes/overlay/kustomization.yaml"
    rendered=$manifests/overlay-$(echo "$components" | tr -d ,./)
    mkdir "$rendered"
    kubectl kustomize "$work/kubernetes/overlay" --output "$rendered"
  done
else
  echo "lint-deploy: kubectl is not installed; the kustomizations were not built"
fi

if command -v helm > /dev/null; then
  # The defaults, and each set of values for tests.
  for values in helm/polyhead/values.yaml helm/polyhead/ci/*.yaml; do
    helm lint --quiet --strict --values "$values" helm/polyhead
    helm template polyhead helm/polyhead --values "$values" --output-dir "$manifests/$(basename "$values" .yaml)" > /dev/null
  done
else
  echo "lint-deploy: helm is not installed; the chart was not checked"
fi

# Kinds of Kubernetes against its schemas, others against those of schemas/.
for schema in schemas/*.json; do
  files=$(grep -rilx "kind: $(basename "$schema" .json)" "$manifests")
  # shellcheck disable=SC2086
  "$bin/check-jsonschema" --quiet --schemafile "$schema" $files
  # shellcheck disable=SC2086
  rm $files
done
find "$manifests" -name '*.yaml' ! -name kustomization.yaml -exec "$bin/kubernetes-validate" --strict --quiet --no-warn {} +

if command -v envoy > /dev/null; then
  envoy --mode validate --log-level warn --config-path load_balancing/envoy.yaml > /dev/null
else
  echo "lint-deploy: envoy is not installed; its configuration was not checked"
fi
if command -v haproxy > /dev/null; then
  haproxy -c -q -f load_balancing/haproxy.cfg
else
  echo "lint-deploy: haproxy is not installed; its configuration was not checked"
fi
if command -v nginx > /dev/null; then
  sed "s,/run/polyhead-nginx.pid,$work/nginx.pid," load_balancing/nginx.conf > "$work/nginx.conf"
  nginx -t -q -c "$work/nginx.conf"
else
  echo "lint-deploy: nginx is not installed; its configuration was not checked"
fi

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
