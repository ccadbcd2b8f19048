# shellcheck shell=bash
# Sourced by test scripts that need packages which the project's environment is better without.

# own_environment FOLDER REQUIREMENTS...: makes an environment over the project's, once, and installs these files'
# packages into it, each file by itself and without what the packages name as their needs.
own_environment() {
    local folder=$1 base file
    shift
    [ ! -e "$folder/.installed" ] || return 0
    base=$(realpath "${VENV:-.venv}")
    "$base/bin/python" -m venv "$folder"
    packages() { "$1/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }
    packages "$base" > "$(packages "$(realpath "$folder")")/project.pth"
    for file in "$@"; do
        "$folder/bin/pip" install --quiet --no-deps -r "$file"
    done
    touch "$folder/.installed"
}
