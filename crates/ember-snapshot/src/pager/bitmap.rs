//! A set of pages in which one is found, put in and taken out at once.

use crate::pages::{PageRun, PageSet};

/// A set of pages with a bit for each.
#[derive(Clone, Debug, Default)]
pub(super) struct Bitmap {
    words: Vec<u64>,
    count: u64,
}

impl Bitmap {
    /// An empty set of pages below `end`.
    pub(super) fn below(end: u64) -> Self {
        Self {
            words: vec![0; usize::try_from(end.div_ceil(64)).unwrap_or(0)],
            count: 0,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(super) fn contains(&self, page: u64) -> bool {
        let index = usize::try_from(page / 64).ok();
        let word = index.and_then(|index| self.words.get(index));
        word.is_some_and(|word| word >> (page % 64) & 1 != 0)
    }

    pub(super) fn intersects(&self, run: PageRun) -> bool {
        let last = self.words.len() as u64 * 64;
        (run.start()..run.end().min(last)).any(|page| self.contains(page))
    }

    pub(super) fn insert(&mut self, run: PageRun) {
        let mut added = 0;
        self.each_word(run, |word, mask| {
            added += u64::from((mask & !*word).count_ones());
            *word |= mask;
        });
        self.count += added;
    }

    pub(super) fn remove(&mut self, run: PageRun) {
        let mut removed = 0;
        self.each_word(run, |word, mask| {
            removed += u64::from((mask & *word).count_ones());
            *word &= !mask;
        });
        self.count -= removed;
    }

    /// Puts in those of `other`, which has the same end.
    pub(super) fn insert_all(&mut self, other: &Self) {
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            self.count += u64::from((more & !*word).count_ones());
            *word |= more;
        }
    }

    /// Those of them that are in `run`.
    pub(super) fn within(&self, run: PageRun) -> PageSet {
        (run.start()..run.end())
            .filter(|page| self.contains(*page))
            .filter_map(|page| PageRun::new(page, 1))
            .collect()
    }

    /// All of them.
    pub(super) fn pages(&self) -> PageSet {
        let mut pages = PageSet::new();
        for (index, word) in (0_u64..).zip(&self.words) {
            let mut rest = *word;
            while rest != 0 {
                let first = u64::from(rest.trailing_zeros());
                let count = u64::from((rest >> first).trailing_ones());
                rest &= !mask(first, count);
                if let Some(run) = PageRun::new(index * 64 + first, count) {
                    pages.insert(run);
                }
            }
        }
        pages
    }

    /// Calls `visit` with each word that has bits of `run`, and with the mask of those.
    fn each_word(&mut self, run: PageRun, mut visit: impl FnMut(&mut u64, u64)) {
        let mut page = run.start();
        while page < run.end() {
            let end = ((page / 64 + 1) * 64).min(run.end());
            let index = usize::try_from(page / 64).ok();
            if let Some(word) = index.and_then(|index| self.words.get_mut(index)) {
                visit(word, mask(page % 64, end - page));
            }
            page = end;
        }
    }
}

/// `count` bits, one at least, from bit `first` on.
fn mask(first: u64, count: u64) -> u64 {
    (u64::MAX >> (64 - count)) << first
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bitmap_is_the_set_that_was_put_in() {
        let run = |start, pages| PageRun::new(start, pages).unwrap();
        let set = |runs: &[(u64, u64)]| -> PageSet {
            runs.iter()
                .map(|&(start, pages)| run(start, pages))
                .collect()
        };
        let pages = set(&[(0, 1), (3, 61), (65, 64), (130, 2), (200, 300)]);
        let mut map = Bitmap::below(510);
        // Twice is as once.
        for run in pages.runs().iter().chain(pages.runs()) {
            map.insert(*run);
        }
        assert_eq!(map.pages(), pages);
        assert_eq!(map.within(run(0, 1000)), pages);
        assert_eq!(map.within(run(60, 10)), set(&[(60, 4), (65, 5)]));
        assert!(map.intersects(run(63, 1)));
        assert!(!map.intersects(run(132, 68)));
        assert!(!map.intersects(run(600, 1 << 30)));
        // Beyond its end there is nothing.
        map.insert(run(600, 10));
        assert!(!map.contains(600));

        let mut more = Bitmap::below(510);
        more.insert(run(2, 2));
        more.insert_all(&map);
        assert_eq!(more.pages(), pages.union(&set(&[(2, 2)])));
        assert_eq!(more.count, pages.pages() + 1);

        map.remove(run(10, 400));
        map.remove(run(10, 400));
        assert_eq!(map.pages(), set(&[(0, 1), (3, 7), (410, 90)]));
        assert_eq!(map.count, 98);
        map.remove(run(0, 600));
        assert!(map.is_empty());
    }
}
