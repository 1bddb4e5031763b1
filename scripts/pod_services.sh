# What makes a rented pod a place to work at: logins by key, the environment of every shell, JupyterLab. Sourced by
# startup_script.sh --pod, whose say, fail, venv, repository, volume and environment it uses. Every part may be done again.

note="$HOME/.music-training.env" # what shells, also those of ssh, and JupyterLab are given

answers() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; } # whether anything listens on a port

say_decisions() {
  if [ -n "$volume" ]; then
    say "volume: $volume ($(stat -f -c %T "$volume"), $(($(df -Pk "$volume" | awk 'NR == 2 { print $4 }') / 1000000)) GB free)"
    if [ "$(stat -c %d "$volume")" = "$(stat -c %d "$volume/..")" ]; then
      say "WARNING: $volume lies on the container's own disk, which goes with the pod: attach a volume, or back up (scripts/backup_outputs.py)"
    fi
  else
    say "no volume: what is written goes with the pod; attach one, or back up (scripts/backup_outputs.py)"
  fi
  say "data and outputs: ${MUSIC_OUTPUTS:-$repository/outputs}"
  say "virtual environment: $venv"
  say "caches: ${MUSIC_CACHE:-$HOME/.cache}"
}

# The keys of $PUBLIC_KEY may log in. As root sshd is started where none runs.
let_in() {
  [ -n "${PUBLIC_KEY:-}" ] || { say "ssh: PUBLIC_KEY is not set, logins stay as they are" && return; }
  local keys="$HOME/.ssh/authorized_keys" line added=0 port=${MUSIC_SSH_PORT:-22}
  mkdir -p "$HOME/.ssh" && touch "$keys" && chmod 700 "$HOME/.ssh" && chmod 600 "$keys" || fail "$keys: cannot be written"
  [ -z "$(tail -c 1 "$keys")" ] || echo >>"$keys"
  while IFS= read -r line; do
    line=${line%$'\r'}
    case "$line" in
      ssh-* | ecdsa-* | sk-*) ;;
      '') continue ;;
      *)
        say "ssh: a line of PUBLIC_KEY is no public key and is left out"
        continue
        ;;
    esac
    grep -qxF -- "$line" "$keys" || { printf '%s\n' "$line" >>"$keys" && added=$((added + 1)); }
  done <<<"$PUBLIC_KEY"
  if answers "$port"; then
    line="a server listens on port $port"
  elif [ "$(id -u)" != 0 ]; then
    line="no server on port $port, and only root can start one"
  elif [ -x /usr/sbin/sshd ]; then
    mkdir -p /run/sshd && ssh-keygen -A >/dev/null && /usr/sbin/sshd -p "$port" 9>&- || fail "sshd does not start; see /usr/sbin/sshd -t"
    line="sshd started on port $port"
  else
    line="no sshd here; as root: apt-get install openssh-server"
  fi
  say "ssh: $added keys of PUBLIC_KEY added to $keys; $line"
}

# Every shell is told where things lie, those that ssh starts for a single command through /etc/rp_environment.
hand_on_environment() {
  local file hook=". '$note' # music-training"
  { environment && printf 'export PATH="%s/bin:$PATH"\n' "$venv"; } >"$note.tmp"
  if cmp -s "$note.tmp" "$note"; then rm "$note.tmp"; else mv "$note.tmp" "$note"; fi
  for file in "$HOME/.bashrc" /etc/rp_environment; do
    if [ "$file" = "$HOME/.bashrc" ] || [ -w "$file" ]; then
      touch "$file"
      grep -qxF -- "$hook" "$file" || printf '%s\n' "$hook" >>"$file"
    fi
  done
}

# JupyterLab with the kernel in place: our own, or the one that the image started, which finds the kernel too.
start_jupyter() {
  local port=${MUSIC_JUPYTER_PORT:-8888} log="$HOME/.music-training.jupyter.log" root=$repository options=() address=127.0.0.1
  grep -qsF "\"$venv/bin/python\"" "$HOME/.local/share/jupyter/kernels/music-training/kernel.json" ||
    "$venv/bin/python" -m ipykernel install --user --name music-training --display-name "Music training" >/dev/null ||
    fail "the Jupyter kernel could not be put into $HOME/.local"
  if answers "$port"; then
    if "$venv/bin/python" -c 'import json, sys, urllib.request as r
json.load(r.build_opener(r.ProxyHandler({})).open(f"http://127.0.0.1:{sys.argv[1]}/api", timeout=20))["version"]' "$port" 2>/dev/null; then
      say "JupyterLab: runs already on port $port; choose the kernel Music training there"
    else
      say "WARNING: something else than Jupyter listens on port $port: JupyterLab is not started; name another port in MUSIC_JUPYTER_PORT"
    fi
    return
  fi
  if [ "$(id -u)" = 0 ]; then options+=(--allow-root); fi
  case "$repository/" in "$volume/"*) root=$volume ;; esac
  if [ -n "${JUPYTER_PASSWORD:-}" ]; then
    export JUPYTER_TOKEN=$JUPYTER_PASSWORD # not on the command line, where every process can read it
    address=0.0.0.0
    if [ -n "${RUNPOD_POD_ID:-}" ]; then options+=("--ServerApp.allow_origin=https://$RUNPOD_POD_ID-$port.proxy.runpod.net"); fi
  fi
  rm -f "$log"
  (
    umask 077
    cd "$root"
    . "$note"
    exec setsid "$venv/bin/python" -m jupyterlab --no-browser --port "$port" --port-retries 0 --ip "$address" \
      --ServerApp.root_dir="$root" --ServerApp.preferred_dir="$repository" "${options[@]}" </dev/null >"$log" 2>&1 9>&-
  ) &
  for _ in $(seq 240); do
    if answers "$port"; then
      if [ -n "${JUPYTER_PASSWORD:-}" ]; then
        say "JupyterLab: started on port $port in $root, its password is that of JUPYTER_PASSWORD; log: $log"
      else
        say "JupyterLab: started on port $port of this machine only, as JUPYTER_PASSWORD is not set; reach it by a tunnel, its token: $venv/bin/python -m jupyter server list"
      fi
      return
    fi
    kill -0 $! 2>/dev/null || break
    sleep 0.25
  done
  fail "JupyterLab does not start: $(tail -1 "$log") (all of it: $log)"
}
