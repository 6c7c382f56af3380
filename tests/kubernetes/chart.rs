//! The chart, as Helm renders it and as a real API server takes it: values, objects, Pods, and who may do what.

mod admission;
mod pods;
mod reasons;
mod rendering;
pub(crate) mod rights;
mod values;
mod values_documented;

use libtest_mimic::Trial;

use crate::Bed;

pub(crate) fn trials(bed: &Bed) -> Vec<Trial> {
    let asking_nobody = values::trials().into_iter().chain(values_documented::trials());
    let asking = [pods::trials(bed), reasons::trials(bed), admission::trials(bed)];
    asking_nobody.chain(asking.into_iter().flatten()).collect()
}
