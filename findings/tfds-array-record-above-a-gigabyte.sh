#!/bin/sh
# tensorflow-datasets 4.9.10 writes ArrayRecord without TensorFlow only up to 1,000 MiB a split.
#
# A GeneratorBasedBuilder whose images are encoded bytes, with file_format="array_record" and no TensorFlow installed,
# prepares a small split without complaint, and data sources read it. One cannot tell from this that a larger split will
# do: the examples are first kept in memory to be shuffled, and when they exceed 1,000 MiB they move to temporary files
# that are opened through tf.io.gfile. Then `import tensorflow` fails, and all that was generated is lost. Neither the
# file format nor disable_shuffling changes this.
#
# Seen: 20 examples of 1 MiB are written and read; the same builder with 1,010 examples raises an error that names the
# missing module tensorflow.
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q tensorflow-datasets==4.9.10 array-record==0.8.6 etils==1.15.0 \
  importlib_resources==7.1.0 numpy==2.4.6
cat > "$dir/write.py" <<'PY'
import sys

import numpy as np
import tensorflow_datasets as tfds

count, where = int(sys.argv[1]), sys.argv[2]


class Blobs(tfds.core.GeneratorBasedBuilder):
    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict({"blob": tfds.features.Text(), "row": np.int64})
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for row in range(count):
            yield row, {"blob": "x" * 2**20, "row": row}


builder = Blobs(data_dir=where, file_format="array_record")
config = tfds.download.DownloadConfig(try_download_gcs=False, compute_stats=tfds.download.ComputeStatsMode.SKIP)
builder.download_and_prepare(download_config=config)
assert "tensorflow" not in sys.modules
print("read back:", len(builder.as_data_source(split="train")))
PY
cd "$dir"
small=$("$dir/venv/bin/python" write.py 20 "$dir/small" 2>/dev/null | tail -n 1)
echo "20 examples of 1 MiB: $small"
[ "$small" = "read back: 20" ]
if "$dir/venv/bin/python" write.py 1010 "$dir/large" > large.out 2> large.err; then
  echo "1,010 examples of 1 MiB are written too: this has changed"
  exit 1
fi
last=$(grep -o "No module named 'tensorflow'" large.err | tail -n 1)
echo "1,010 examples of 1 MiB: $last"
[ "$last" = "No module named 'tensorflow'" ]
