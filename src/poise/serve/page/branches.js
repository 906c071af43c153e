/** A conversation as a tree: each turn knows the one before it, and the last one in sight says which path is shown. */

/** The turns from the first to `leaf`. */
export function pathTo(all, leaf) {
  const byId = new Map(all.map((turn) => [turn.id, turn]));
  const path = [];
  for (let turn = byId.get(leaf); turn && path.length <= all.length; turn = byId.get(turn.parent)) path.unshift(turn);
  return path;
}

/** Turns that stand at the same place, oldest first; the turn itself is one of them. */
export const siblingsOf = (all, turn) =>
  all.filter(({ parent }) => (parent ?? null) === (turn.parent ?? null)).sort((one, other) => (one.time < other.time ? -1 : 1));

/** The end of the newest path through a turn. */
export function newestBelow(all, turn) {
  let last = turn;
  for (let steps = 0; steps < all.length; steps += 1) {
    const next = all.filter(({ parent }) => parent === last.id).sort((one, other) => (one.time < other.time ? 1 : -1))[0];
    if (!next) break;
    last = next;
  }
  return last.id;
}

/** Turns kept before there were branches, as one path. */
export function asPath(turns) {
  turns.forEach((turn, i) => {
    turn.id ??= `old-${i}-${turn.time}`;
    turn.parent ??= turns[i - 1]?.id ?? null;
  });
  return turns;
}
