"""Channel groups: which slices of which parameters can only be removed together.

The graph, not the kinds of the modules, says what depends on what. Every value carries one tracked dimension whose
positions have channel numbers; each operator maps the numbers of its inputs to those of its output, and positions
that must stay or go together have their numbers joined:

1. convolution, linear, embedding: the output has new numbers, tied to a dimension of the weight and to the bias; the
   input's numbers are tied to the other dimension of the weight;
2. grouped convolution: it loses whole groups, so all inputs and outputs of a group are joined; in a depthwise
   convolution that is one channel each, and two groups stay;
3. recurrent layer: a hidden unit is a row of every gate in both directions, and a column of the recurrent weight;
4. normalisation of each channel: its parameters and statistics are tied to the input's numbers. One over all channels
   gives others when some are missing, so it is left whole unless that is asked for;
5. elementwise with two operands: numbers at one position are joined; a parameter as operand is tied to them;
6. concatenation along the tracked dimension puts numbers one after the other, along another one joins them;
7. flatten and reshape repeat a channel's number once for each of its values, so that a linear layer behind them is tied
   to blocks of columns; one that splits the tracked dimension joins the numbers within each part, so that attention
   loses whole heads;
8. product of two values: numbers at one position of the dimensions in front are joined;
9. parts of one value, as query, key and value of one layer: numbers at one place of each part are joined.

Numbers that reach the network's input or output, or an operator that is not understood, are fixed.
Source: dependency groups, Fang et al. 2023, "DepGraph: Towards Any Structural Pruning"; heads, Michel et al. 2019.
"""

from __future__ import annotations

from armlet.analysis.graph import Traced
from armlet.analysis.groups.result import ChannelGroup, ChannelGroups, FixedGroup, Member
from armlet.analysis.groups.rules import RULES
from armlet.analysis.groups.tracker import Tracker

__all__ = ["ChannelGroup", "ChannelGroups", "FixedGroup", "Member", "channel_groups"]


def channel_groups(traced: Traced, *, through_layer_norm: bool = False) -> ChannelGroups:
    """Return the channel groups of a network.

    Args:
        traced: its graph.
        through_layer_norm: whether channels that a layer normalisation takes together may go: what it gives for the
            others then changes.
    """
    tracker = Tracker(traced, through_layer_norm)
    for node in traced.nodes:
        tracker.visit(node, RULES)
    for node in traced.outputs:
        tracker.fix(node, "they are the network's output")
    return tracker.groups()
