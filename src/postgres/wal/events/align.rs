//! Which relation had which file.

/// No more cells than this are computed: about 1,400 relations and files.
const MAX_CELLS: usize = 2_000_000;
/// What it costs if a file belongs to none of the relations.
const STRAY_FILE: u32 = 60;
/// What it costs if a relation with a file follows one without, or the other way round: what belongs together goes together.
const CHANGE: u32 = 1;

/// What it costs to say which relation had which file.
pub(super) struct Costs<M, N, P> {
    /// Of a relation and a file.
    pub(super) matched: M,
    /// Of a relation without a file.
    pub(super) without: N,
    /// Of a relation and the next one together with a file and the next one, if these relations are a pair.
    pub(super) pair: P,
}

/// Returns for each of `calls` things that may have removed a file which of `files` it was, both in the order in which
/// it happened, so that the costs are least. `None` stands for too many to tell.
pub(super) fn align<M, N, P>(calls: usize, files: usize, costs: &Costs<M, N, P>) -> Option<Vec<Option<usize>>>
where
    M: Fn(usize, usize) -> u32,
    N: Fn(usize) -> u32,
    P: Fn(usize, usize) -> Option<u32>,
{
    let width = files + 1;
    let cells = (calls + 1).checked_mul(width)?;
    if cells > MAX_CELLS {
        return (calls == files).then(|| (0..calls).map(Some).collect());
    }
    let pair = |i: usize, j: usize| {
        if i + 1 < calls && j + 1 < files { (costs.pair)(i, j) } else { None }
    };
    // best[at(i, j)][had]: the least cost of calls from i on and files from j on, after a relation that had a file or not.
    let at = |i: usize, j: usize| i * width + j;
    let mut best = vec![[0u32; 2]; cells];
    let change = |had: usize, has: usize| if had == has { 0 } else { CHANGE };
    for i in (0..=calls).rev() {
        for j in (0..=files).rev() {
            for had in 0..2 {
                let mut least = if i == calls && j == files { 0 } else { u32::MAX };
                if i < calls {
                    least = least.min((costs.without)(i) + change(had, 0) + best[at(i + 1, j)][0]);
                }
                if j < files {
                    least = least.min(STRAY_FILE + best[at(i, j + 1)][had]);
                }
                if i < calls && j < files {
                    least = least.min((costs.matched)(i, j) + change(had, 1) + best[at(i + 1, j + 1)][1]);
                }
                if let Some(cost) = pair(i, j) {
                    least = least.min(cost + change(had, 1) + best[at(i + 2, j + 2)][1]);
                }
                best[at(i, j)][had] = least;
            }
        }
    }
    let mut found = vec![None; calls];
    let (mut i, mut j) = (0, 0);
    let mut had = usize::from(best[0][1] < best[0][0]);
    while i < calls {
        let rest = best[at(i, j)][had];
        if pair(i, j).is_some_and(|cost| rest == cost + change(had, 1) + best[at(i + 2, j + 2)][1]) {
            (found[i], found[i + 1]) = (Some(j), Some(j + 1));
            (i, j, had) = (i + 2, j + 2, 1);
        } else if j < files && rest == (costs.matched)(i, j) + change(had, 1) + best[at(i + 1, j + 1)][1] {
            found[i] = Some(j);
            (i, j, had) = (i + 1, j + 1, 1);
        } else if rest == (costs.without)(i) + change(had, 0) + best[at(i + 1, j)][0] {
            (i, had) = (i + 1, 0);
        } else {
            j += 1;
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cost(calls: &[u32], files: &[u32]) -> Vec<Option<usize>> {
        let costs = Costs {
            matched: |i: usize, j: usize| if calls[i] == files[j] { 0 } else { 2 },
            without: |_| 3,
            pair: |_, _| None,
        };
        align(calls.len(), files.len(), &costs).unwrap()
    }

    #[test]
    fn numbers_that_agree_belong_together() {
        assert_eq!(cost(&[], &[]), []);
        assert_eq!(cost(&[1, 2, 3], &[1, 2, 3]), [Some(0), Some(1), Some(2)]);
        assert_eq!(cost(&[1, 2, 3], &[2]), [None, Some(0), None]);
        assert_eq!(cost(&[1, 2, 3], &[1, 9]), [Some(0), Some(1), None], "a neighbour rather");
        assert_eq!(cost(&[2], &[1, 2, 3]), [Some(1)]);
    }

    #[test]
    fn too_many_are_not_told_apart_unless_each_has_a_file() {
        let costs = Costs { matched: |_, _| 0, without: |_| 1, pair: |_, _| None };
        assert_eq!(align(5000, 4999, &costs), None);
        assert_eq!(align(5000, 5000, &costs).unwrap().last(), Some(&Some(4999)));
    }
}
