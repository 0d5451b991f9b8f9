//! Which relation had which file.

/// No more cells than this are computed: about 2,000 relations and files.
const MAX_CELLS: usize = 4_000_000;
/// What it costs if a file belongs to none of the relations.
const STRAY_FILE: u32 = 60;

/// Returns for each of `calls` things that may have removed a file which of `files` it was, both in the order in which
/// it happened, so that the costs are least. `None` stands for too many to tell.
pub(super) fn align(
    calls: usize,
    files: usize,
    cost: impl Fn(usize, usize) -> u32,
    cost_of_none: impl Fn(usize) -> u32,
) -> Option<Vec<Option<usize>>> {
    let width = files + 1;
    let cells = (calls + 1).checked_mul(width)?;
    if cells > MAX_CELLS {
        return (calls == files).then(|| (0..calls).map(Some).collect());
    }
    // best[i * width + j]: the least cost of calls from i on and files from j on.
    let mut best = vec![0u32; cells];
    for i in (0..=calls).rev() {
        for j in (0..=files).rev() {
            let at = |i: usize, j: usize| i * width + j;
            best[at(i, j)] = match (i < calls, j < files) {
                (false, false) => 0,
                (true, false) => cost_of_none(i) + best[at(i + 1, j)],
                (false, true) => STRAY_FILE + best[at(i, j + 1)],
                (true, true) => (cost(i, j) + best[at(i + 1, j + 1)])
                    .min(cost_of_none(i) + best[at(i + 1, j)])
                    .min(STRAY_FILE + best[at(i, j + 1)]),
            };
        }
    }
    let mut found = vec![None; calls];
    let (mut i, mut j) = (0, 0);
    while i < calls {
        let rest = best[i * width + j];
        if j < files && rest == cost(i, j) + best[(i + 1) * width + j + 1] {
            found[i] = Some(j);
            (i, j) = (i + 1, j + 1);
        } else if rest == cost_of_none(i) + best[(i + 1) * width + j] {
            i += 1;
        } else {
            j += 1;
        }
    }
    Some(found)
}
