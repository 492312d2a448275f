"""How much memory a plan takes on every device: weights, KV cache and what a run works with."""

from dataclasses import dataclass, replace

from ggrun.plan import Member, Plan, Stage
from ggrun.plan.facts import EMBEDDING, PAGE, ModelFacts, pages

LOGITS_BYTES = 64 << 20
"""How much memory the logits of one run may take."""
_ROOM = 7  # rows that every buffer has more, because products take several columns at a time
_CARD_SCRATCH = 32 << 20  # parts of sums, for as many blocks as the largest cards run at once
TOP_K, SLICE = 128, 4096
"""The most logits that a card finds the best of, and how many it looks at in one block (a test says so)."""
_CARD_WEIGHTS = 128 << 20  # dequantized, a piece at a time, for products by cuBLAS
_SLACK = 16 << 10  # what all buffers of a stage lose to alignment, and tables of addresses


@dataclass(frozen=True)
class Sizes:
    """What a user chooses that takes memory.

    n_ctx          positions in the KV cache, of all sequences together
    n_ubatch       tokens of a prompt that are computed together
    sequences      most texts at once
    keys, values   the form of the KV cache's cells
    """

    n_ctx: int
    n_ubatch: int = 512
    sequences: int = 1
    keys: str = "f16"
    values: str = "f16"

    @property
    def tokens(self) -> int:
        """Tokens that are computed together."""
        return min(self.n_ubatch, self.n_ctx)

    @property
    def pages(self) -> int:
        """Pages of the KV cache."""
        return pages(self.n_ctx)

    def outputs(self, vocab: int) -> int:
        """How many of them may want logits, in a model with so many of these."""
        return max(1, min(self.tokens, LOGITS_BYTES // (4 * vocab)))


@dataclass
class Use:
    """The bytes that a plan takes of one device."""

    weights: int = 0
    kv: int = 0
    working: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.weights + self.kv + self.working

    def add(self, other: "Use") -> None:
        """Add another use of the same device."""
        self.weights += other.weights
        self.kv += other.kv
        self.working += other.working


def item_use(facts: ModelFacts, item: int, member: Member, sizes: Sizes) -> Use:
    """What a half layer, the output (2 * layers) or the embedding (-1) takes on a member's device."""
    part = facts.part(item)
    use = Use(facts.of(part.nbytes, member), working=part.padding)
    if item == len(facts.parts):
        use.weights += facts.tied_output("nbytes", member)
    elif item != EMBEDDING and item % 2 == 0:
        cell = facts.cell_bytes(member, sizes.keys, sizes.values)
        use.kv = sizes.pages * PAGE * cell
    return use


def working(facts: ModelFacts, member: Member, sizes: Sizes, peers: int) -> int:
    """The bytes of a device's buffers for its share of any half layers, without those of the output.

    peers    other devices: what comes from them has room of its own

    Stages of one device use the same buffers. This is the sum of what a recorder makes for
    `engine/forward.py`, a little more than it keeps, as buffers of one size serve several times.
    """
    c, rows = facts.config, sizes.tokens + _ROOM
    ff = member.ff[1] - member.ff[0]
    # The stream, its norm, a column, a part to be added.
    total = rows * (c.width * 4 * 3 + _columns(c.width, member))
    # What comes lies in one slot for each batch under way, and one for each part of a sum.
    total += rows * c.width * 4 * (peers + 2 + peers) if peers else 0
    total += rows * _attention_row(facts, member)
    if not c.experts:
        total += rows * (ff * 4 * 2 + _columns(ff, member))
    else:
        pairs = sizes.tokens * c.experts_used + _ROOM
        total += rows * 4 * (c.experts + 3 * c.experts_used + c.width)
        total += pairs * (4 + (c.width + ff) * 4 * 2 + _column(c.width) + _column(ff))
    if _on_card(member):
        widest = max(c.vocab, ff, c.heads * c.key_dim, c.heads * c.value_dim)
        total += _CARD_SCRATCH + min(_CARD_WEIGHTS, 2 * c.width * widest)
    return total + 32 * rows + 4 * sizes.sequences * sizes.pages + _SLACK


def _attention_row(facts: ModelFacts, member: Member) -> int:
    c = facts.config
    heads, kv_heads = member.heads[1] - member.heads[0], member.kv_heads[1] - member.kv_heads[0]
    keys = (heads + kv_heads) * c.key_dim
    mixed = heads * c.value_dim
    return 4 * (2 * keys + kv_heads * c.value_dim + 2 * c.rope.dims + mixed) + _columns(mixed, member)


def _on_card(member: Member) -> bool:
    return member.device.rpartition("/")[2].startswith("cuda:")  # of this machine or another one


def _column(values: int) -> int:
    """The bytes of a quantized column: two for a value, of whole superblocks (see kernels/cpu/columns.py)."""
    return -(-values // 256) * 512


def _columns(values: int, member: Member) -> int:
    """Those, and on cards the same values as float16, for large products (see kernels/cuda/gemm.cu)."""
    return _column(values) + (2 * values + 32 if _on_card(member) else 0)


def output_working(facts: ModelFacts, member: Member, sizes: Sizes) -> int:
    """The bytes of the output's buffers: the rows whose logits are wanted, and the logits."""
    c = facts.config
    rows, share = sizes.outputs(c.vocab) + _ROOM, member.vocab[1] - member.vocab[0]
    total = rows * (c.width * 4 * 2 + _columns(c.width, member) + 4 * share) + _SLACK
    return total + (rows * _best_logits(share) if _on_card(member) else 0)


def _best_logits(share: int) -> int:
    """The bytes that a card takes to find the best of a row: ids and logits, and as much for each slice.

    Of what these leave it finds the best in slices again, which are no smaller.
    """
    slices = -(-share // SLICE)
    pieces = 1 + slices
    while slices > 1:
        slices = -(-slices * TOP_K // SLICE)
        pieces += slices
    return 8 * TOP_K * pieces


def plan_use(facts: ModelFacts, plan: Plan, sizes: Sizes, peers: int) -> dict[str, Use]:
    """What the plan takes of each of its devices, and of "cpu" where the KV cache stays there.

    peers    devices that there are beside one: counted for all plans, so that what fits is the same
             question for one that is found and one that is written by hand
    """
    uses: dict[str, Use] = {}
    shares: dict[Member, None] = {}
    for stage in plan.stages:
        for member in stage.members:
            use = _stage_use(facts, plan, stage, member, sizes)
            if plan.kv_on_host and member.device != "cpu":
                uses.setdefault("cpu", Use()).kv += use.kv
                use.kv = 0
            uses.setdefault(member.device, Use()).add(use)
            shares[replace(member, vocab=(0, 0))] = None
    for member in shares:
        uses[member.device].working += working(facts, member, sizes, peers)
    return uses


def _stage_use(facts: ModelFacts, plan: Plan, stage: Stage, member: Member, sizes: Sizes) -> Use:
    """Without the buffers that a device's stages share."""
    use, output = Use(), len(facts.parts)
    for half in range(*stage.halves):
        use.add(item_use(facts, half, member, sizes))
    if stage is plan.stages[0]:
        use.add(item_use(facts, EMBEDDING, member, sizes))
    if stage is plan.stages[-1]:
        use.add(item_use(facts, output, member, sizes))
        use.working += output_working(facts, member, sizes)
        use.weights -= _counted_twice(facts, plan, member)
    return use


def _counted_twice(facts: ModelFacts, plan: Plan, member: Member) -> int:
    """The bytes of a tied embedding that serve as the output too.

    They do so where a device has both.
    """
    embeds = member.device in (m.device for m in plan.stages[0].members)
    return facts.tied_output("nbytes", member) if embeds else 0
