"""A tuned copy of a GGUF file, for llama.cpp.

It keeps what the file says of the model, its tokenizer included, and every tensor that
tuning did not touch, byte for byte. A quantised matrix with tuned entries becomes float16: its
blocks would round away what was tuned.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from seedtune.runtime.errors import ModelError

from .peft_adapter import Moved

_ARCHITECTURES = {
    "llama": "llama",
    "mistral": "llama",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "phi3": "phi3",
    "gemma3_text": "gemma3",
}
"""What llama.cpp calls a model type of transformers."""
ELSE = "write --to hf and take llama.cpp's convert_hf_to_gguf.py"
"""What to do about a model that is not written here."""


class GgufNames:
    """How llama.cpp names and orders the matrices of a transformers model."""

    def __init__(self, config: Any) -> None:
        """
        Args:
            config: of the transformers model.

        Raises:
            ModelError: the model type is not one of those that are known here.
        """
        import gguf

        if config.model_type not in _ARCHITECTURES:
            raise ModelError(
                f"a model of type {config.model_type} is not written as GGUF "
                f"({', '.join(_ARCHITECTURES)} are); {ELSE}"
            )
        self.architecture = _ARCHITECTURES[config.model_type]
        kind = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == self.architecture)
        self._names = gguf.get_tensor_name_map(kind, config.num_hidden_layers)
        self._heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}

    def tensor(self, module: str, kind: str = "weight") -> str:
        """The tensor of a module's ``weight`` or ``bias``.

        Raises:
            ModelError: llama.cpp has none.
        """
        name = self._names.get_name(module)
        if name is None:
            raise ModelError(
                f"layer {module} has no place in a GGUF file of architecture {self.architecture}; "
                f"{ELSE}"
            )
        return f"{name}.{kind}"

    def rows(self, module: str, count: int) -> NDArray[np.intp]:
        """Which row of transformers' matrix stands in each row of llama.cpp's, ``[count]``.

        For llama, llama.cpp rotates neighbours, transformers halves: queries and keys are
        reordered within each head.
        """
        rows, heads = np.arange(count), self._heads.get(module.rpartition(".")[2])
        if self.architecture != "llama" or heads is None:
            return rows
        return rows.reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)


def write_tuned_gguf(
    file: Path, source: Path, moved: Mapping[str, Moved], names: GgufNames
) -> None:
    """Write the model in ``source`` with what was moved in its places.

    Args:
        source: the GGUF file that the base model was read from.
        moved: by module name.

    Raises:
        ModelError: a matrix of ``source`` is laid out otherwise than is known here.
        OSError: it cannot be written.
    """
    import gguf

    reader = gguf.GGUFReader(source)
    tuned = {names.tensor(module): (module, one) for module, one in moved.items()}
    absent = set(tuned) - {tensor.name for tensor in reader.tensors}
    if absent:
        raise ModelError(f"{source}: holds no tensor {min(absent)}, in which values were tuned")
    writer = gguf.GGUFWriter(file, names.architecture)
    writer.data_alignment = reader.alignment
    for field in reader.fields.values():
        own = field.name == gguf.Keys.General.ARCHITECTURE or field.name.startswith("GGUF.")
        if not own:
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), kind, sub_type=inner)
    floats = (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16)

    def written(tensor: Any) -> tuple[Any, np.dtype[Any]]:
        """Format and dtype of a tensor in the new file."""
        if tensor.name in tuned and tensor.tensor_type not in floats:
            return gguf.GGMLQuantizationType.F16, np.dtype(np.float16)
        return tensor.tensor_type, tensor.data.dtype

    for tensor in reader.tensors:
        kind, dtype = written(tensor)
        kept = kind == tensor.tensor_type
        shape = tensor.data.shape if kept else tuple(int(size) for size in tensor.shape[::-1])
        count = int(np.prod(shape)) * dtype.itemsize
        writer.add_tensor_info(tensor.name, shape, dtype, count, raw_dtype=kind)

    def data() -> Iterator[NDArray[Any]]:
        """Of one tensor after the other: a matrix stands in float32 for as long as it is made."""
        for tensor in reader.tensors:
            if tensor.name not in tuned:
                yield tensor.data
                continue
            module, one = tuned[tensor.name]
            matrix = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(one.shape).copy()
            order = np.argsort(names.rows(module, one.shape[0]))
            rows, columns = np.divmod(one.places, one.shape[1])
            if not np.array_equal(matrix[order[rows], columns], one.before):
                raise ModelError(
                    f"{source}: {tensor.name} is laid out otherwise than {module} of the model; "
                    f"{ELSE}"
                )
            matrix[order[rows], columns] = one.after
            yield matrix.astype(written(tensor)[1])

    write_tensors(writer, data())


def write_tensors(writer: Any, tensors: Iterator[NDArray[Any]]) -> None:
    """Write the file of a ``GGUFWriter`` that knows its tensors, one after the other."""
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors:
            writer.write_tensor_data(tensor)
    finally:
        writer.close()
