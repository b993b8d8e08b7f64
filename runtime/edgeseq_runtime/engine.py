"""The engine: runs a bundle's graphs step by step, each token to the depth it needs.

It owns all decoding state and knows nothing of text or search. One step embeds a token per row and
runs block 1 on all rows, in one graph, asks the depth policy which rows stop, runs block 2 on the rest, and so
on; each row's exit state then goes through its exit head.

A row that stops leaves its last state to be copied upward. When it later enters a block it had
skipped, the same call makes the missing columns from the copied states first, and only those that
it can still reach (lazy bounded backfill). This equals making them at once, exactly:
a column depends on its own copied state only.

A sentence that is decoded alone takes its whole step in one graph, see ``row_alone``, unless the policy has to be asked
on the way. Either way gives the same bits.

With a shortlist, exit heads compute the logits of each row's candidates only, see ``shortlist``. Where the policy wants
drafts, a sentence alone is drafted by a shallow block and verified by those above it, see ``speculation``.

The graphs read and write the state in place, through indices; see ``places`` and ``signatures``.

On the CPU, hidden states are the same bits whatever a sentence's batch mates, order and padding,
given graphs whose arithmetic keeps rows apart and source lengths in multiples of 4.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeseq_runtime.arrays import AnyArray, BoolArray, FloatArray, IntArray
from edgeseq_runtime.errors import DeviceError, InputError
from edgeseq_runtime.exit_heads import StepLogits
from edgeseq_runtime.file_identities import FileIdentities, identify_files
from edgeseq_runtime.manifest import GraphRole, ModelFacts
from edgeseq_runtime.places import BlockPlaces, Layout, StepPlaces
from edgeseq_runtime.policy import DepthPolicy, LinearStop
from edgeseq_runtime.row_alone import RowAlone
from edgeseq_runtime.sentence_encoder import SentenceEncoder
from edgeseq_runtime.sessions import CPU_PROVIDER, BoundGraph, BoundMemory, Graphs, select_provider
from edgeseq_runtime.shortlist import BatchCandidates, Shortlist, candidate_bias, pad_candidates
from edgeseq_runtime.signatures import expected_signatures
from edgeseq_runtime.sinusoids import Sinusoids
from edgeseq_runtime.source_attention import SourceAttention
from edgeseq_runtime.speculation import Speculation, Verifier
from edgeseq_runtime.state import DecoderState


@dataclass(frozen=True, slots=True)
class Step:
    """What one decoding step gives.

    Attributes:
        logits: (rows, columns), of the exit head after the block at which each row stopped. The next step
            of the same state may write into this memory.
        depths: (rows,), that block, from 1.
        candidates: (rows, columns), the piece of each column; None where there is a column for every piece.
    """

    logits: FloatArray
    depths: IntArray
    candidates: IntArray | None = None


class Engine:
    """A bundle's graphs on a device. May be shared by threads: state lives in DecoderState.

    Attributes:
        full_depth: Number of decoder blocks.
        shortlist: Chooses the candidates of all sentences; None where any piece may be chosen.
    """

    def __init__(
        self,
        folder: Path,
        model: ModelFacts,
        device: str = "auto",
        shortlist: Shortlist | None = None,
        draft_shortlist: Shortlist | None = None,
        files: FileIdentities | None = None,
    ) -> None:
        """Create the sessions that every decode needs; the others follow when they are first wanted.

        Args:
            folder: A bundle whose files have been checked.
            model: Facts of its model.
            device: ``cpu``, ``cuda`` or ``auto``.
            shortlist: Of the bundle, to be used for all sentences.
            draft_shortlist: Of the bundle, to be used for drafts, which need not be right.
            files: What the files were when they were checked; None: what they are now.

        Raises:
            BundleError: A graph cannot be loaded, or is not what the manifest declares; or the files are others now.
            DeviceError: The device cannot be used.
            InputError: ``device`` is out of range.
        """
        files = identify_files(folder) if files is None else files
        self._graphs = _open_graphs(folder, model, device, shortlist or draft_shortlist, files)
        self.shortlist = shortlist
        self._draft_shortlist = draft_shortlist
        self.provider = self._graphs.provider
        self._encoder = SentenceEncoder(self._graphs["encoder", None], model.dim)
        self._source_attention = SourceAttention(self._graphs)
        self._vocab_size = model.vocab_size
        self._layout = Layout(model)
        self._encoded = itertools.count()
        self._sinusoids = Sinusoids(model.dim)
        self.full_depth = model.decoder_blocks
        self._tied = model.head == "tied"
        self._never = LinearStop.never(model)
        self._spare: list[DecoderState] = []  # of one row each

    def encode(self, sources: Sequence[Sequence[int]], policy: DepthPolicy, *, alone: bool = True) -> DecoderState:
        """Encode sentences and prepare to decode them as one batch.

        Args:
            sources: Ids of each sentence, eos included; none is empty.
            policy: Decides the depths of the tokens to come.
            alone: Whether a single sentence will be decoded by itself, as one row. Where not, what decodes it in
                whole steps is not made ready, which would take time and memory; results are the same.

        Returns:
            A state at target position 0.

        Raises:
            InputError: No sentence, or an empty one.
            BundleError: A graph is wanted a first time, and cannot be loaded or has changed.
            DeviceError: onnxruntime fails.
        """
        if not sources or not all(sources):
            raise InputError("expected at least one source sentence, and none empty (eos included)")
        lengths = np.array([len(source) for source in sources], dtype=np.int64)
        memory = self._encoder.run(sources, lengths)
        longest = memory.shape[1]
        bias = np.where(np.arange(longest) < lengths[:, None], np.float32(0), np.float32(-np.inf))
        sentences = np.array([next(self._encoded) for _ in sources], dtype=np.int64)
        bias = bias.reshape(len(sources), 1, 1, longest)
        candidates = None if self.shortlist is None else self._choose_candidates(self.shortlist, sources)
        role: GraphRole = "step" if candidates is None else "shortlist_step"
        whole_step = (role, None) in self._graphs and self.provider == CPU_PROVIDER
        stop = policy.linear_stop if alone and len(sources) == 1 and whole_step else None
        state = self._take_spare() if stop is not None else None
        if state is None:
            state = DecoderState.before_start(
                self._layout, policy, memory, bias, lengths, sentences, self._vocab_size, candidates
            )
        else:
            state.start_again(policy, memory, bias, lengths, sentences, candidates)
        if stop is not None and (state.alone is None or state.alone.stop is not stop):
            state.alone = RowAlone(self._bound(state, role), stop, self._never, self._sinusoids)
        if state.alone is not None:
            self._prepare_drafts(state, sources[0])
        return state

    def release(self, state: DecoderState) -> None:
        """Take back a state that is not used any more, for the next sentence that is decoded alone.

        Not calling it costs time only. Afterwards the state is the engine's: not to be read, nor released again.
        """
        if state.alone is not None:
            self._spare.append(state)

    def _prepare_drafts(self, state: DecoderState, source: Sequence[int]) -> None:
        """Let what drafts the tokens of a sentence alone be ready, where the policy wants drafts."""
        depth = state.policy.draft_depth
        if depth is None:
            state.speculation = None
            return
        if self.shortlist is not None:
            state.draft_candidates = state.candidates
        elif self._draft_shortlist is not None:
            state.draft_candidates = self._choose_candidates(self._draft_shortlist, [source])
        if state.speculation is None or state.speculation.draft_depth != depth:
            graph = self._graphs["step" if state.draft_candidates is None else "shortlist_step", None].bind()
            drafter = RowAlone(graph, self._never, self._never, self._sinusoids)
            verifier = Verifier(self._run_block, self._classify, self.full_depth)
            state.speculation = Speculation(state, drafter, depth, verifier)

    def _take_spare(self) -> DecoderState | None:
        try:
            return self._spare.pop()
        except IndexError:  # asked for and taken at once: another thread may be here
            return None

    def adopt(self, state: DecoderState, rows: IntArray, other: DecoderState, other_rows: IntArray) -> None:
        """Give rows of a batch to sentences that were encoded apart.

        Source keys and values of the blocks that the batch is in are computed for all of ``other``
        at once, the first time. A batch of one row computes nothing before it enters a block.

        Args:
            state: The batch.
            rows: Its rows to overwrite.
            other: What :meth:`encode` made of the sentences; not to be decoded itself.
            other_rows: For each of ``rows``, the row of ``other`` it takes.
        """
        self._source_attention.prepare(other, state)
        state.adopt(rows, other, other_rows)

    def step(
        self,
        state: DecoderState,
        tokens: IntArray,
        parents: IntArray | None = None,
        depths: IntArray | None = None,
    ) -> Step:
        """Feed one token per row and compute the logits of the next.

        Args:
            state: Each row is advanced by one position, in place.
            tokens: (rows,), the tokens at the rows' current positions: bos at first.
            parents: (rows,), for each row the row of the previous step it continues; rows not
                named are dropped. None continues all rows in order.
            depths: (rows,), the depth of each token, from 1 to N, instead of the policy's choice; 0
                leaves it to the policy. None leaves all to it.

        Raises:
            InputError: Arrays of the wrong length, or depths out of range.
            BundleError: As of :meth:`encode`.
            DeviceError: onnxruntime fails.
        """
        self._check_step(state.rows if parents is None else len(parents), tokens, depths)
        if parents is not None:
            state.select(parents)
        if state.layout.grows:
            state.fit_rings()
        if state.alone is not None:
            forced = 0 if depths is None else int(depths[0])
            deepest = forced or int(state.limits[0])
            self._source_attention.enter_all(state, deepest)
            depth = state.alone.step(state, int(tokens[0]), deepest, forced=forced > 0)
            return Step(state.logits, np.array([depth]), state.candidate_ids)
        step = self._run_blocks(state, state.begin_step(), tokens, depths)
        state.positions = state.positions + 1
        return step

    def run_ahead(
        self, state: DecoderState, token: int, most: int, never: Sequence[int], depths: Sequence[int] | None = None
    ) -> tuple[list[int], list[int]] | None:
        """Decode the only row of a state greedily to its end, where a step is one call.

        Args:
            state: Advanced by as many positions as tokens are found.
            token: The token at the row's current position.
            most: Tokens to find at most, 1 or more.
            never: Ids that are not chosen.
            depths: The depth of each of ``most`` tokens, from 1 to N, instead of the policy's choice. None leaves all
                to it.

        Returns:
            The tokens found, up to EOS, and the block after which each stopped; None where there are several rows, or
            where a step takes several calls.

        Raises:
            BundleError: As of :meth:`encode`.
            DeviceError: onnxruntime fails.
        """
        if state.alone is None:
            return None
        limit = int(state.limits[0]) if depths is None else max(depths)
        self._source_attention.enter_all(state, limit)
        if state.speculation is not None and depths is None:
            tokens = state.speculation.decode(token, most, never)
            return tokens, [self.full_depth] * len(tokens)
        deepest = itertools.repeat(limit, most) if depths is None else depths
        return state.alone.decode(state, token, deepest, never, forced=depths is not None)

    def run_graph(self, role: GraphRole, block: int | None, feed: Mapping[str, AnyArray]) -> list[FloatArray]:
        """Run one graph by itself, outside of any decode.

        Args:
            role: What it does.
            block: Its block, None where it belongs to none.
            feed: An array per input.

        Returns:
            Its outputs.

        Raises:
            DeviceError: onnxruntime fails.
        """
        return self._graphs[role, block].run(feed)

    def _bound(self, state: DecoderState, role: GraphRole, block: int | None = None) -> BoundGraph:
        key = (role, block)
        if key not in state.bound:
            state.bound[key] = self._graphs[key].bind()
        return state.bound[key]

    def _check_step(self, rows: int, tokens: IntArray, depths: IntArray | None) -> None:
        for name, array in (("tokens", tokens), ("depths", depths)):
            if array is not None and array.shape != (rows,):
                raise InputError(f"{name} has the shape {array.shape}, expected ({rows},)")
        if depths is not None and rows and not 0 <= depths.min() <= depths.max() <= self.full_depth:
            raise InputError(
                f"depths are {depths.tolist()}, expected 1 to {self.full_depth}, or 0 for the policy's choice"
            )

    def _run_blocks(self, state: DecoderState, places: StepPlaces, tokens: IntArray, depths: IntArray | None) -> Step:
        """Run each row through the blocks until it stops, then through its exit head."""
        policy = state.policy
        limits = state.limits  # of the active rows, like `free`
        free: BoolArray | None = None  # rows whose depth is the policy's choice; None: all
        if depths is not None:
            free = depths == 0
            limits = np.where(free, limits, depths)
        lowest = limits.min()  # no active row stops before this block
        heads = StepLogits(state.exit_states, partial(self._classify, state), tied=self._tied)
        used = np.empty(state.rows, dtype=np.int64)
        self._run_first_block(state, places, tokens)
        for block in range(1, self.full_depth + 1):
            if block > 1:
                self._run_block(state, block, places)
            if block == self.full_depth:
                used[places.active] = block
                break
            logits = None
            if policy.decides(block) and (free is None or policy.linear_stop is not None or free.any()):
                planned, logits = _plan(state, block, heads, places.active, limits)
                limits = planned if free is None else np.where(free, planned, limits)
                lowest = 0
            elif lowest > block:
                continue
            going = (limits > block).nonzero()[0]
            if len(going) == len(limits):
                continue
            state.skip_blocks_above(block)
            used[places.active] = block  # those that go on get theirs later
            if logits is not None:
                heads.keep(places.active, logits, limits <= block)
            if not len(going):
                break
            places.narrow(going)
            limits = limits.take(going)
            free = None if free is None else free.take(going)
        return Step(heads.finish(used), used, state.candidate_ids)

    def _run_first_block(self, state: DecoderState, places: StepPlaces, tokens: IntArray) -> None:
        """Embed all tokens and run block 1 on them; no row ever skips it."""
        feed: dict[str, AnyArray] = {
            "tokens": np.ascontiguousarray(tokens),
            "position_vectors": self._sinusoids.take(state.positions),
            **self._sources(state, 1, places.active),
            **places.first_block_indices(state.layout.ring_sizes[0]),
        }
        past = state.blocks[0]
        outputs = {"exit_states": state.exit_states, **self._stop_scores(state, 1, feed, state.rows)}
        self._bound(state, "block", 1).run({"states": state.states, **past.tensors}, feed, outputs)
        past.filled[:] = places.next_positions

    def _run_block(self, state: DecoderState, block: int, places: BlockPlaces) -> None:
        """Run a block on the active rows, after making the columns that they skipped."""
        past = state.blocks[block - 1]
        feed = {
            **self._sources(state, block, places.active),
            **places.block_indices(state.layout.ring_sizes[block - 1], past.filled if past.behind else None),
        }
        outputs = self._stop_scores(state, block, feed, len(places.active))
        self._bound(state, "block", block).run(
            {"states": state.states, "exit_states": state.exit_states, **past.tensors}, feed, outputs
        )
        past.filled[places.active] = places.next_positions
        if past.behind and len(places.active) == state.rows:
            past.behind = False

    def _stop_scores(
        self, state: DecoderState, block: int, feed: dict[str, AnyArray], rows: int
    ) -> dict[str, BoundMemory]:
        """Tell a block below the last what its exit states are multiplied by, and where the products go."""
        if block == self.full_depth:
            return {}
        feed["stop_weight"] = (state.policy.linear_stop or self._never).rows[block - 1]
        return {"stop_scores": state.stop_scores.first(rows)}

    def _sources(self, state: DecoderState, block: int, active: IntArray) -> dict[str, AnyArray]:
        """What a block is told of the rows' sources."""
        key, value = self._source_attention.enter(state, block, active)
        return {"cross_key": key, "cross_value": value, "source_bias": state.source_bias}

    def count_candidates(self, source: Sequence[int]) -> int:
        """How many pieces a sentence's tokens are chosen from, by its source ids."""
        return self._vocab_size if self.shortlist is None else len(self.shortlist.candidates(source))

    def _choose_candidates(self, shortlist: Shortlist, sources: Sequence[Sequence[int]]) -> BatchCandidates:
        """Choose the candidates of sentences, and take the exit head's weights for them."""
        ids, sizes = pad_candidates([shortlist.candidates(source) for source in sources])
        taken = self._graphs["candidates", None].run({"candidates": ids})
        tensors: dict[str, npt.NDArray[Any]] = dict(zip(("candidate_weights", "candidate_scales"), taken, strict=False))
        bias = candidate_bias(sizes, ids.shape[1])
        return BatchCandidates(ids, sizes, tensors | {"candidate_bias": bias})

    def _classify(self, state: DecoderState, block: int, rows: IntArray | None) -> FloatArray:
        """Run the exit head of a block on some rows, None: all, in memory that the next call writes into."""
        if state.candidates is not None:
            # Of all rows even so: their weights lie where they are, and would have to be copied.
            head = self._bound(state, "shortlist_head")
            head.run({}, {"exit_states": state.exit_states, **state.candidates.tensors}, {"logits": state.logits})
            return state.logits if rows is None else state.logits.take(rows, axis=0)
        exit_states = state.exit_states if rows is None else state.exit_states.take(rows, axis=0)
        logits = state.logits if rows is None else state.logits[: len(rows)]
        head = self._bound(state, "head", None if self._tied else block)
        head.run({}, {"exit_states": exit_states}, {"logits": logits})
        return logits


def _plan(
    state: DecoderState, block: int, heads: StepLogits, active: IntArray, limits: IntArray
) -> tuple[IntArray, FloatArray | None]:
    """Say after which block the active rows are to stop, (active,), and what logits were read for that."""
    policy = state.policy
    if policy.linear_stop is not None:
        stops = state.stop_scores.array[: len(limits)] > policy.linear_stop.limits[block - 1]
        return np.where(stops, block, limits), None
    exit_states = heads.exit_states_of(active)
    logits = heads.classify(block, active) if policy.reads_logits else None
    return np.minimum(limits, policy.plan(block, exit_states, logits)), logits


def _open_graphs(
    folder: Path, model: ModelFacts, device: str, shortlist: Shortlist | None, files: FileIdentities
) -> Graphs:
    """Start a provider; ``auto`` takes the CPU where CUDA is offered but cannot be started."""
    provider = select_provider(device)
    signatures = expected_signatures(model, None if shortlist is None else shortlist.facts.weights)
    graphs = Graphs(folder, signatures, provider, files)
    try:
        graphs["encoder", None]
    except DeviceError:
        if device != "auto" or provider == CPU_PROVIDER:
            raise
        graphs = Graphs(folder, signatures, CPU_PROVIDER, files)
        graphs["encoder", None]
    for block in range(1, model.decoder_blocks + 1):
        graphs["cross", block]
    return graphs
