"""The authors' names of a checkpoint's tensors, and the native ones."""

import re

VISION_PREFIX = "model.vision_tower.vision_tower."
AUDIO_PREFIX = "model.audio_tower.audio_tower."
BERT_PREFIX = "model.bert_model."

# Legacy key patterns and their native names, the first match counting.
_CONVERTED = [
    (r"model\.(embed_tokens|layers|norm)\.(.+)", r"model.language_model.\1.\2"),
    (r"lm_head\.(.+)", r"lm_head.\1"),
    (
        r"model\.vision_tower\.vision_tower\.vision_model\.(embeddings|encoder)\.(.+)",
        r"model.vision_tower.\1.\2",
    ),
    (r"model\.audio_tower\.audio_tower\.encoder\.(.+)", r"model.audio_tower.\1"),
    (r"model\.audio_projector\.(.+)", r"model.audio_projector.\1"),
    # BERT as it was first published names its norms' tensors gamma and beta.
    (r"model\.bert_model\.(embeddings|encoder)\.(.*)LayerNorm\.gamma", r"model.bert.\1.\2LayerNorm.weight"),
    (r"model\.bert_model\.(embeddings|encoder)\.(.*)LayerNorm\.beta", r"model.bert.\1.\2LayerNorm.bias"),
    (r"model\.bert_model\.(embeddings|encoder)\.(.+)", r"model.bert.\1.\2"),
    (r"model\.bert_gate\.(.+)", r"model.gate.\1"),
    (r"model\.mm_projector\.mlp_2xgelu_face\.(.+)", r"model.projector.face.mlp.\1"),
    (r"model\.mm_projector\.readout_(video|body)\.(.+)", r"model.projector.\1.readout.\2"),
    (r"model\.mm_projector\.sampler_(video|body)\.0\.(.+)", r"model.projector.\1.sampler.\2"),
]
_REG_BLOCK = re.compile(r"model\.mm_projector\.s([12])_(video|body)\.b(\d+)\.(.+)")
_VISION_LAYER = re.compile(r"model\.vision_tower\.vision_tower\.vision_model\.encoder\.layers\.(\d+)\.")

# Keys that the model never reads, with the reason that is reported.
_DROPPED = [
    (
        r"model\.vision_tower\.vision_tower\.vision_model\.(head|post_layernorm)\..+",
        "SigLIP's post-norm and pooling head are not read",
    ),
    (
        r"model\.audio_tower\.audio_tower\.(projector|classifier)\..+",
        "Whisper's classification head is not read",
    ),
    (r"model\.bert_model\.pooler\..+", "the gate reads BERT's CLS state, not its pooler"),
    (r"model\..+\.(position_ids|rotary_emb\.inv_freq)", "a constant that the model computes"),
]

# How published tower folders name what a HumanOmni checkpoint holds under its prefixes. SigLIP's and Whisper's folders
# are two-part models, of which the text half and the decoder have no legacy name.
_TOWER_PREFIXES = {
    VISION_PREFIX: (("vision_model.", "vision_model."),),
    AUDIO_PREFIX: (("model.encoder.", "encoder."), ("encoder.", "encoder.")),
    BERT_PREFIX: (
        ("bert.embeddings.", "embeddings."),
        ("bert.encoder.", "encoder."),
        ("embeddings.", "embeddings."),
        ("encoder.", "encoder."),
    ),
}


def native_key(key: str, vision_layers: int) -> tuple[str | None, str | None]:
    """Native name of a legacy key, or the reason for which it is dropped.

    Args:
        key: the legacy name.
        vision_layers: SigLIP layers that the native tower keeps.

    Returns:
        (native name, None), (None, reason), or (None, None) for a key of no known form.
    """
    if layer := _VISION_LAYER.match(key):
        beyond = int(layer[1]) - vision_layers
        if beyond >= 0:
            return None, "HumanOmni reads SigLIP's last but one layer" if beyond == 0 else None
    for pattern, reason in _DROPPED:
        if re.fullmatch(pattern, key):
            return None, reason
    if block := _REG_BLOCK.fullmatch(key):
        stage, branch, number, leaf = block.groups()
        leaf = leaf.replace("downsample.", "shortcut.").replace(".bn.", ".norm.")
        return f"model.projector.{branch}.stage{stage}.{int(number) - 1}.{leaf}", None
    for pattern, name in _CONVERTED:
        if re.fullmatch(pattern, key):
            return re.sub(pattern, name, key), None
    return None, None


def tower_key(key: str, prefix: str) -> str | None:
    """Legacy name of a tensor in a published tower's own folder; None for the half that HumanOmni has no use for.

    Args:
        key: the name in the tower's folder.
        prefix: of the tower in a HumanOmni checkpoint: one of this module's ``*_PREFIX``.
    """
    for theirs, ours in _TOWER_PREFIXES[prefix]:
        if key.startswith(theirs):
            return prefix + ours + key.removeprefix(theirs)
    return None
