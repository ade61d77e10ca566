"""Write the prompts that verl reads: one row for each place to start from."""

import argparse
import pathlib

import pandas
from corridor import LAST, Corridor


def rows() -> list[dict]:
    return [
        {
            "prompt": [{"role": "user", "content": Corridor(start).question}],
            "data_source": "corridor",
            "reward_model": {"style": "rule", "ground_truth": ""},
            "extra_info": {"index": start, "start": start},
        }
        for start in range(LAST)
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--repeat", type=int, default=64)
    options = parser.parse_args()
    options.file.parent.mkdir(parents=True, exist_ok=True)
    pandas.DataFrame(rows() * options.repeat).to_parquet(options.file)
