# Two GPUs: benchmarks on the first, tests and variants on the second, then both. Reports to $OUT.
python3 -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade --target /tmp/site .whl/*.whl
export PYTHONPATH=/tmp/site:$PWD HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTHONUNBUFFERED=1 TORCHINDUCTOR_COMPILE_THREADS=8
nvidia-smi --query-gpu=name --format=csv,noheader
S=$SECONDS
b() { echo "== $((SECONDS-S)) $*"; timeout $1 taskset -c 0-15 python3 benchmarks/$2 "${@:3}" 2>&1 | grep -v "arn\|^W1" | tail -4 | cut -c1-1200; }
t() { echo "== $((SECONDS-S)) $*"; timeout $1 taskset -c 16-31 "${@:2}" 2>&1 | grep -v "arn\|^W1" | tail -90 | cut -c1-250; }
gpu0() { export CUDA_VISIBLE_DEVICES=0
 b 130 infer_bench.py --size 7B --num_workers 8 --batches 12
 b 140 infer_bench.py --size 0.5B --num_workers 8 --batches 60
 b 130 infer_bench.py --size 7B --num_workers 8 --batches 9 --batch_size 16
 b 120 infer_bench.py --size 0.5B --num_workers 8 --batches 24 --cached; echo "== $((SECONDS-S))"; }
gpu1() { export CUDA_VISIBLE_DEVICES=1
 t 130 python3 -m pytest -q tests/test_on_gpu.py -k "forward_passes or every_time or likeliest" --durations=4
 STEPS=1 VARS=base,base2,share4,share6,turn t 150 python3 .dev/ahead5.py
 cp -r . /tmp/f; cd /tmp/f; patch -s -p1 < .dev/fused.patch; export PYTHONPATH=/tmp/site:/tmp/f
 t 60 python3 -m pytest -q tests/test_decoding_kernels.py
 t 110 python3 -m pytest -q tests/test_on_gpu.py -k "forward_passes"
 STEPS=1 VARS=base,base2,share4,share6 t 130 python3 .dev/ahead5.py; echo "== $((SECONDS-S))"; }
gpu0 > $OUT/gpu0.txt 2>&1 & gpu1 > $OUT/gpu1.txt 2>&1 &
wait
timeout 130 python3 -m pytest -q tests/test_on_gpu.py -k two_gpus_write 2>&1 | tail -15 > $OUT/two.txt
cat $OUT/gpu1.txt $OUT/two.txt $OUT/gpu0.txt
