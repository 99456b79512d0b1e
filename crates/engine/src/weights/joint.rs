//! Queries, keys and values of an attention to itself as one product on a GPU: their weights lie behind each other, under one more name.

use candle_core::{DType, Result, Tensor};

use super::Tensors;

/// The attentions of tokens to each other, by diffusers' name.
const ITSELF: &str = ".attn1.";
/// What a joint weight is made of, in its order.
const PARTS: [&str; 3] = ["to_q", "to_k", "to_v"];
/// What it is called in their place.
pub(crate) const JOINT: &str = "to_qkv";

/// Whether it is the name of a joint weight, which no file has.
pub(crate) fn is_joint(name: &str) -> bool {
    name.strip_suffix(".weight").is_some_and(|module| module.ends_with(JOINT))
}

/// Brings the weights of each attention to itself behind each other, where that is of use: on a GPU, in 16 bits. Each is a part of the joint one then, and
/// takes no memory of its own.
pub(super) fn join(tensors: &mut Tensors) -> Result<()> {
    let firsts: Vec<String> = tensors.keys().filter(|name| is_first(name)).cloned().collect();
    for first in firsts {
        let names = PARTS.map(|part| first.replace(PARTS[0], part));
        let [Some(query), Some(key), Some(value)] = names.each_ref().map(|name| tensors.get(name)) else { continue };
        let is_alike = |tensor: &Tensor| tensor.dims() == query.dims() && tensor.dtype() == query.dtype();
        let is_of_use = query.device().is_cuda() && matches!(query.dtype(), DType::F16 | DType::BF16);
        if !(is_of_use && query.rank() == 2 && is_alike(key) && is_alike(value)) {
            continue;
        }
        let parts = [query.clone(), key.clone(), value.clone()];
        lay(tensors, &first.replace(PARTS[0], JOINT), &parts)?;
    }
    Ok(())
}

/// Makes joint what an overlay has of those weights that are joint in `base`.
pub(crate) fn join_over(base: &Tensors, overlay: &mut Tensors) -> Result<()> {
    for name in base.keys().filter(|name| is_joint(name)) {
        let names = PARTS.map(|part| name.replace(JOINT, part));
        if names.iter().any(|name| overlay.contains_key(name)) {
            let parts = names.map(|name| overlay.get(&name).unwrap_or(&base[&name]).clone());
            lay(overlay, name, &parts)?;
        }
    }
    Ok(())
}

/// `parts` as a weight of this name, and each of them as a part of it.
fn lay(tensors: &mut Tensors, name: &str, parts: &[Tensor; 3]) -> Result<()> {
    let joint = Tensor::cat(parts, 0)?;
    let rows = parts[0].dim(0)?;
    for (place, part) in PARTS.iter().enumerate() {
        tensors.insert(name.replace(JOINT, part), joint.narrow(0, place * rows, rows)?);
    }
    tensors.insert(name.to_owned(), joint);
    Ok(())
}

fn is_first(name: &str) -> bool {
    name.contains(ITSELF) && name.ends_with(".to_q.weight")
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Error};

    use super::*;
    use crate::device;

    fn named(device: &Device, names: &[&str]) -> Result<Tensors> {
        let mut tensors = Tensors::new();
        for name in names {
            let values = Tensor::randn(0.0_f32, 1.0, (4, 8), &Device::Cpu)?.to_dtype(DType::F16)?;
            tensors.insert((*name).to_owned(), values.to_device(device)?);
        }
        Ok(tensors)
    }

    fn values(tensor: &Tensor) -> Result<Vec<f32>> {
        tensor.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1()
    }

    #[test]
    fn a_joint_weight_has_its_parts_in_order_and_those_of_an_overlay_in_their_place() -> Result<()> {
        let device = device::open().map_err(Error::wrap)?;
        let names = ["a.attn1.to_q.weight", "a.attn1.to_k.weight", "a.attn1.to_v.weight", "a.attn2.to_q.weight"];
        let mut tensors = named(&device, &names)?;
        let before = tensors.clone();
        join(&mut tensors)?;
        for name in names {
            assert!(values(&tensors[name])? == values(&before[name])?, "{name}");
        }
        if device.is_cpu() {
            assert_eq!(tensors.len(), before.len(), "of no use on a CPU");
            return Ok(());
        }
        let joint = "a.attn1.to_qkv.weight";
        let whole = |parts: [&Tensor; 3]| values(&Tensor::cat(&parts, 0)?);
        assert!(values(&tensors[joint])? == whole([&before[names[0]], &before[names[1]], &before[names[2]]])?);
        let mut overlay = named(&device, &names[1..2])?;
        let key = overlay[names[1]].clone();
        join_over(&tensors, &mut overlay)?;
        assert_eq!(overlay.len(), 4);
        assert!(values(&overlay[joint])? == whole([&before[names[0]], &key, &before[names[2]]])?);
        assert!(values(&overlay[names[1]])? == values(&key)?);
        let mut other = named(&device, &names[3..])?;
        join_over(&tensors, &mut other)?;
        assert_eq!(other.keys().collect::<Vec<_>>(), [names[3]]);
        Ok(())
    }
}
