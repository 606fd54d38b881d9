"""The command that exports an encoder for production."""

from pathlib import Path
from typing import Annotated, Any

import typer

from e2rank.cli import options
from e2rank.cli.commands import app
from e2rank.cli.output import print_json
from e2rank.encoders.judged import Judged
from e2rank.encoders.presets import load_encoder
from e2rank.evaluate import judging, load_beir
from e2rank.index.manifest import Manifest


@app.command()
def export(
    model: Annotated[
        str, typer.Argument(help="An encoder, as `e2rank index` takes it, or an index made by it.")
    ],
    out: Annotated[Path, typer.Option(help="A new or empty folder for the bundle.")],
    precision: Annotated[str, typer.Option(help="fp32; int8 for CPUs; fp16 for GPUs.")] = "fp32",
    texts: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            help="Compare on the lines of this file, not on texts of the package.",
        ),
    ] = None,
    judged: Annotated[
        Path | None,
        typer.Option(help="Measure nDCG@10 before and after on this BEIR folder, too."),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Of --judged: whose judgments; test unless given.")
    ] = None,
    json: options.Json = False,
) -> None:
    """Export an encoder to ONNX, if the export gives the vectors that the encoder gives."""
    from e2rank.encoders.onnx import export_onnx

    if split and not judged:
        raise ValueError("--split is of the collection of --judged, and there is none; give one")
    judge = judging(load_beir(judged, split or "test")) if judged else None
    given = texts.read_text(encoding="utf-8").splitlines() if texts else None
    # Its type, and the precision, are checked there.
    source, name = _encoder_of(model)
    encoder: Any = load_encoder(source, device="cpu")
    kind: Any = precision
    report = export_onnx(encoder, out, precision=kind, texts=given, judge=judge, name=name)
    if json:
        print_json({"bundle": str(out)} | report)
        return
    typer.echo(
        f"{out}: {name or encoder.name} in {precision}; of {report['texts']} texts the least "
        f"cosine to its vectors is {report['documents']['cosine']:.6f}"
    )
    if "judged" in report:
        typer.echo(Judged.of(report["judged"]).in_words())


def _encoder_of(model: str) -> tuple[str, str | None]:
    """The encoder that made an index, with the adapter it was given; any other name as it is.

    Returns:
        What to load, and its name if it has none of its own: an index's adapter is of a commit.
    """
    if not (Path(model) / "manifest.json").is_file():
        return model, None
    manifest = Manifest.load(Path(model))
    own = manifest.encoder.name
    return (str(Path(model) / manifest.adapter), own) if manifest.adapter else (own, None)
