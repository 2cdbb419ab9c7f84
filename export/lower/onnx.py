"""From a traced program to an ONNX file that ONNX Runtime runs, its tensors in files beside it.

torch's exporter does the work. What is added here: the int4 product becomes ONNX Runtime's own
``MatMulNBits``; tensors stand in the bundle's shared files; and what the exporter notes of its
ways, nine tenths of the file, is left out.

Pairs of quantise and dequantise operators, the standard's own form, are not written: ONNX Runtime
fuses them where it likes, else it dequantises whole matrices (onnxruntime issues 21180, 21362).
"""

from collections.abc import Mapping
from typing import Any

import torch
from onnx.defs import OpSchema, has, register_schema
from seedtune.runtime.bundle import Program
from seedtune.runtime.bundle.terms import inside_count
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind

from ..quantise.int4 import GROUP_SIZE
from ..quiet import quiet
from .stored_weights import Place, StoredWeights
from .trace import input_name

FORMAT = "onnx"
FILE = "program.onnx"
OPSET = 21
ACCURACY_LEVEL = 0
"""Accuracy of the product's activations: 0 keeps float32. 4, int8 a block, was slower on x86 (2.65
of the native engine's time, not 1.70), as far from it (0.06 an example) and noisier
(6e-3, not 3e-6)."""
_DOMAIN = "com.microsoft"
_INLINE = 256
"""Bytes up to which a tensor stays in the ONNX file."""


class OnnxProgram:
    """A program in ONNX whose tensors are still to be placed."""

    def __init__(
        self,
        traced: ExportedProgram,
        weights: StoredWeights,
        methods: Mapping[str, Mapping[str, Any]],
        terms: int,
    ) -> None:
        """Convert ``traced``; tensors go to ``weights``. ``methods`` are as in ``Program``, and
        ``terms`` is how many it takes."""
        self._methods = methods
        with quiet():
            self._model = _convert(traced, terms)
        self._stored = {}
        for name, value in self._model.graph.initializers.items():
            tensor = value.const_value
            if tensor.nbytes > _INLINE:
                raw = getattr(tensor, "raw", None)
                if not isinstance(raw, torch.Tensor):
                    raw = torch.from_numpy(tensor.numpy().copy())
                self._stored[name] = weights.add(name, raw)

    def serialised(self, places: dict[str, Place]) -> tuple[Program, bytes]:
        """What a manifest says of it, and its file's bytes."""
        import onnx_ir as ir

        files = set()
        for name, key in self._stored.items():
            value, place = self._model.graph.initializers[name], places[key]
            files.add(place.file)
            value.const_value = ir.ExternalTensor(
                place.file,
                place.offset,
                place.bytes,
                value.const_value.dtype,
                shape=value.const_value.shape,
                name=name,
            )
        proto = ir.serde.serialize_model(self._model)
        _strip(proto)
        described = Program(FORMAT, (FILE, *sorted(files)), "float32", self._methods)
        return described, proto.SerializeToString(deterministic=True)


def _convert(traced: ExportedProgram, terms: int) -> Any:
    import onnxscript
    from onnxscript import opset21 as op

    _register_schema()
    theirs = onnxscript.values.Opset(_DOMAIN, 1)

    def int4_linear(x: Any, packed: Any, scales: Any) -> Any:
        out, groups, _ = packed.shape
        return theirs.MatMulNBits(
            x,
            packed,
            op.Cast(scales, to=1),  # folded when ONNX Runtime loads it
            K=groups * GROUP_SIZE,
            N=out,
            bits=4,
            block_size=GROUP_SIZE,
            accuracy_level=ACCURACY_LEVEL,
        )

    names = [
        input_name(spec.arg.name, terms)
        for spec in traced.graph_signature.input_specs
        if spec.kind is InputKind.USER_INPUT
    ]
    more = len(traced.graph_signature.output_specs) - 2
    inside = inside_count(terms)
    converted = torch.onnx.export(
        traced,
        dynamo=True,
        opset_version=OPSET,
        verbose=False,
        custom_translation_table={torch.ops.seedtune.int4_linear.default: int4_linear},
        input_names=names,
        output_names=[
            "logp",
            "hidden",
            *(f"inside_{number}" for number in range(inside)),
            *(f"own_{number}" for number in range(more - inside)),
        ],
    )
    assert converted is not None
    return converted.model


def _register_schema() -> None:
    """onnx knows no operator of onnxruntime's own, and calling one by name takes its schema."""
    if has("MatMulNBits", _DOMAIN):
        return
    value, attribute, integer = OpSchema.FormalParameter, OpSchema.Attribute, OpSchema.AttrType.INT
    register_schema(
        OpSchema(
            "MatMulNBits",
            _DOMAIN,
            1,
            inputs=[value("A", "T1"), value("B", "T2"), value("scales", "T1")],
            outputs=[value("Y", "T1")],
            type_constraints=[("T1", ["tensor(float)"], ""), ("T2", ["tensor(uint8)"], "")],
            attributes=[
                attribute(name, integer, required=True)
                for name in ("K", "N", "bits", "block_size", "accuracy_level")
            ],
        )
    )


def _strip(proto: Any) -> None:
    """Leave out what the exporter noted: source lines, names of modules, sizes of each value."""
    graph = proto.graph
    del proto.metadata_props[:], graph.metadata_props[:], graph.value_info[:]
    for node in graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
