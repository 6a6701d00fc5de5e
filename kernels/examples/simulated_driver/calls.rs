//! The CUDA Driver API, as far as it is called.

use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    ptr,
};

use cudarc::driver::sys::{
    CUcontext, CUdevice, CUdevice_attribute as DeviceAttribute, CUdeviceptr, CUevent, CUfunction,
    CUfunction_attribute as FunctionAttribute, CUmodule, CUresult, CUstream,
};
use nibble_simulator::{Launch, Machine, Module};

use crate::{
    BUS_ID, CURRENT, Kind,
    context::{Context, Function, Stream, Work},
    driver, entered, handle, is_card, number, put, put_text, result, started,
};

/// Bytes before the first that a context after others hands out.
const GAP: usize = 512;

/// Shared memory of a block: without having asked for more, and at most.
const PLAIN_SHARED_BYTES: usize = 48 << 10;
const MAX_SHARED_BYTES: usize = 99 << 10;
const NAME: &CStr = c"Simulated card";

#[unsafe(no_mangle)]
pub extern "C" fn cuDriverGetVersion(version: *mut c_int) -> CUresult {
    result(driver(|driver| put(version, driver.settings.version)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(flags: c_uint) -> CUresult {
    result(driver(|driver| match (flags, driver.settings.is_visible) {
        (0, true) => {
            driver.is_ready = true;
            Ok(())
        }
        (0, false) => Err(CUresult::CUDA_ERROR_NO_DEVICE),
        _ => Err(CUresult::CUDA_ERROR_INVALID_VALUE),
    }))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGetErrorName(error: CUresult, text: *mut *const c_char) -> CUresult {
    let name = match error {
        CUresult::CUDA_ERROR_LAUNCH_FAILED => c"CUDA_ERROR_LAUNCH_FAILED",
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => c"CUDA_ERROR_OUT_OF_MEMORY",
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS => c"CUDA_ERROR_ILLEGAL_ADDRESS",
        _ => c"CUDA_ERROR_OF_ANOTHER_KIND",
    };
    result(put(text, name.as_ptr()))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuGetErrorString(error: CUresult, text: *mut *const c_char) -> CUresult {
    let words = match error {
        CUresult::CUDA_ERROR_LAUNCH_FAILED => c"unspecified launch failure",
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => c"out of memory",
        CUresult::CUDA_ERROR_ILLEGAL_ADDRESS => c"an illegal memory access was encountered",
        _ => c"an error of another kind",
    };
    result(put(text, words.as_ptr()))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetCount(count: *mut c_int) -> CUresult {
    started(|_| put(count, 1))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGet(device: *mut CUdevice, index: c_int) -> CUresult {
    started(|_| is_card(index).and_then(|()| put(device, index)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetName(name: *mut c_char, len: c_int, device: CUdevice) -> CUresult {
    started(|_| is_card(device).and_then(|()| put_text(name, len, NAME)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetPCIBusId(id: *mut c_char, len: c_int, device: CUdevice) -> CUresult {
    started(|_| is_card(device).and_then(|()| put_text(id, len, BUS_ID)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceTotalMem_v2(n_bytes: *mut usize, device: CUdevice) -> CUresult {
    started(|driver| is_card(device).and_then(|()| put(n_bytes, driver.settings.total_bytes)))
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDeviceGetAttribute(
    value: *mut c_int,
    attribute: DeviceAttribute,
    device: CUdevice,
) -> CUresult {
    started(|driver| {
        is_card(device)?;
        let (major, minor) = driver.settings.capability;
        match attribute {
            DeviceAttribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR => put(value, major),
            DeviceAttribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR => put(value, minor),
            _ => Err(CUresult::CUDA_ERROR_INVALID_VALUE),
        }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxCreate_v2(
    context: *mut CUcontext,
    _flags: c_uint,
    device: CUdevice,
) -> CUresult {
    started(|driver| {
        is_card(device)?;
        driver.failed.map_or(Ok(()), Err)?;
        let number = driver.contexts.len();
        let machine = Machine::new();
        // No two contexts have an address in common.
        for _ in 0..number {
            machine.allocate(GAP);
        }
        driver.contexts.push(Some(Context { number, machine, ..Context::default() }));
        CURRENT.set(number + 1);
        put(context, handle((Kind::Context, 0), number + 1))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxDestroy_v2(context: CUcontext) -> CUresult {
    started(|driver| {
        let number = number(context, (Kind::Context, 0), driver.contexts.len())?;
        let ended = driver.contexts[number].take();
        if CURRENT.get() == number + 1 {
            CURRENT.set(0);
        }
        ended.map(drop).ok_or(CUresult::CUDA_ERROR_INVALID_CONTEXT)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(context: CUcontext) -> CUresult {
    started(|driver| {
        let mut current = 0;
        if !context.is_null() {
            let number = number(context, (Kind::Context, 0), driver.contexts.len())?;
            driver.contexts[number].as_ref().ok_or(CUresult::CUDA_ERROR_INVALID_CONTEXT)?;
            current = number + 1;
        }
        CURRENT.set(current);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> CUresult {
    let entered = entered(|_, _| Ok(()));
    if entered != CUresult::CUDA_SUCCESS {
        return entered;
    }
    started(|driver| {
        put(free, driver.used_and_free().1)?;
        put(total, driver.settings.total_bytes)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemAlloc_v2(address: *mut CUdeviceptr, n_bytes: usize) -> CUresult {
    let free = driver(|driver| Ok(driver.used_and_free().1)).unwrap_or(0);
    entered(|context, settings| {
        if n_bytes == 0 {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        if n_bytes.next_multiple_of(settings.granule) > free {
            return Err(CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        }
        let start = context.machine.allocate(n_bytes);
        context.allocated.insert(start, n_bytes);
        // What others left there.
        let filled = context.machine.write(start, &vec![0xff; n_bytes]);
        filled.map_err(|_| CUresult::CUDA_ERROR_UNKNOWN)?;
        put(address, start)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(address: CUdeviceptr) -> CUresult {
    entered(|context, settings| {
        context.run_all(settings)?;
        context.allocated.remove(&address).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
        context.machine.free(address);
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemHostAlloc(
    start: *mut *mut c_void,
    n_bytes: usize,
    _flags: c_uint,
) -> CUresult {
    entered(|context, _| {
        if n_bytes == 0 {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        let mut bytes = vec![0xff_u8; n_bytes];
        let first = bytes.as_mut_ptr();
        context.pinned.insert(first.expose_provenance(), bytes);
        put(start, first.cast())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeHost(start: *mut c_void) -> CUresult {
    entered(|context, _| {
        let bytes = context.pinned.get(&start.addr()).ok_or(CUresult::CUDA_ERROR_INVALID_VALUE)?;
        let range = start.addr()..start.addr() + bytes.len();
        let mut asked = context.streams.iter().flat_map(|stream| &stream.asked);
        if asked.any(|work| work.pinned().is_some_and(|host| range.contains(&host))) {
            eprintln!("the simulated card: pinned memory is freed that a copy still uses");
            return Err(CUresult::CUDA_ERROR_ILLEGAL_STATE);
        }
        context.pinned.remove(&start.addr());
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamCreate(stream: *mut CUstream, _flags: c_uint) -> CUresult {
    entered(|context, _| {
        context.streams.push(Stream::default());
        put(stream, handle((Kind::Stream, context.number), context.streams.len()))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(stream: CUstream) -> CUresult {
    entered(|context, settings| {
        let stream = context.stream(stream)?;
        context.run(stream, context.streams[stream].end(), settings)
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamQuery(stream: CUstream) -> CUresult {
    entered(|context, settings| {
        let stream = context.stream(stream)?;
        // One step on, as time passes.
        context.run(stream, context.streams[stream].n_done + 1, settings)?;
        let is_done = context.streams[stream].asked.is_empty();
        if is_done { Ok(()) } else { Err(CUresult::CUDA_ERROR_NOT_READY) }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWaitEvent(stream: CUstream, event: CUevent, _flags: c_uint) -> CUresult {
    entered(|context, _| {
        let waiting = context.stream(stream)?;
        // As it stands now; one that was never recorded is over.
        let recorded = context.events[context.event(event)?];
        if let Some((stream, position)) = recorded {
            context.ask(waiting, Work::Wait { stream, position });
        }
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventCreate(event: *mut CUevent, _flags: c_uint) -> CUresult {
    entered(|context, _| {
        context.events.push(None);
        put(event, handle((Kind::Event, context.number), context.events.len()))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecord(event: CUevent, stream: CUstream) -> CUresult {
    entered(|context, _| {
        let stream = context.stream(stream)?;
        let event = context.event(event)?;
        context.events[event] = Some((stream, context.streams[stream].end()));
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventSynchronize(event: CUevent) -> CUresult {
    entered(|context, settings| {
        let event = context.event(event)?;
        match context.events[event] {
            Some((stream, position)) => context.run(stream, position, settings),
            None => Ok(()),
        }
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(module: *mut CUmodule, image: *const c_void) -> CUresult {
    entered(|context, _| {
        let image = unsafe { CStr::from_ptr(image.cast()) };
        if image.to_bytes().starts_with(b"\x7fELF") {
            return Err(CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
        }
        let text = image.to_str().map_err(|_| CUresult::CUDA_ERROR_INVALID_IMAGE)?;
        context.modules.push(Module::parse(text).map_err(|error| {
            eprintln!("the simulated card: {error}");
            CUresult::CUDA_ERROR_INVALID_PTX
        })?);
        put(module, handle((Kind::Module, context.number), context.modules.len()))
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(
    function: *mut CUfunction,
    module: CUmodule,
    name: *const c_char,
) -> CUresult {
    entered(|context, _| {
        let module = &context.modules[context.module(module)?];
        let name = unsafe { CStr::from_ptr(name) }.to_str();
        let kernel = name.ok().and_then(|name| module.kernel(name));
        let kernel = kernel.ok_or(CUresult::CUDA_ERROR_NOT_FOUND)?;
        let most_shared_bytes = PLAIN_SHARED_BYTES.saturating_sub(kernel.shared_bytes());
        context.functions.push(Function { kernel, most_shared_bytes });
        put(function, handle((Kind::Function, context.number), context.functions.len()))
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuFuncGetAttribute(
    value: *mut c_int,
    attribute: FunctionAttribute,
    function: CUfunction,
) -> CUresult {
    entered(|context, _| {
        let function = &context.functions[context.function(function)?];
        match attribute {
            FunctionAttribute::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES => {
                put(value, function.kernel.shared_bytes() as c_int)
            }
            _ => Err(CUresult::CUDA_ERROR_INVALID_VALUE),
        }
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuFuncSetAttribute(
    function: CUfunction,
    attribute: FunctionAttribute,
    value: c_int,
) -> CUresult {
    entered(|context, _| {
        let function = context.function(function)?;
        let function = &mut context.functions[function];
        let most = FunctionAttribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let n_bytes = usize::try_from(value).map_err(|_| CUresult::CUDA_ERROR_INVALID_VALUE)?;
        if attribute != most || function.kernel.shared_bytes() + n_bytes > MAX_SHARED_BYTES {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        function.most_shared_bytes = n_bytes;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: CUfunction,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared_bytes: c_uint,
    stream: CUstream,
    parameters: *mut *mut c_void,
    extra: *mut *mut c_void,
) -> CUresult {
    entered(|context, _| {
        let stream = context.stream(stream)?;
        let function = context.function(function)?;
        let Function { kernel, most_shared_bytes } = &context.functions[function];
        let n_threads = u64::from(block_x) * u64::from(block_y) * u64::from(block_z);
        let fits = (1..=1024).contains(&n_threads)
            && block_z <= 64
            && (1..=i32::MAX as u32).contains(&grid_x)
            && [grid_y, grid_z].iter().all(|n| (1..=65_535).contains(n))
            && shared_bytes as usize <= *most_shared_bytes;
        if !parameters.is_null() || extra.is_null() || !fits {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        // CU_LAUNCH_PARAM_END, _BUFFER_POINTER and _BUFFER_SIZE.
        let (mut buffer, mut n_bytes) = (ptr::null::<u8>(), 0);
        let mut at = extra;
        loop {
            let (name, value) = unsafe { (at.read().addr(), at.add(1)) };
            match name {
                0 => break,
                1 => buffer = unsafe { value.read() }.cast(),
                2 => n_bytes = unsafe { value.read().cast::<usize>().read() },
                _ => return Err(CUresult::CUDA_ERROR_INVALID_VALUE),
            }
            at = unsafe { at.add(2) };
        }
        if n_bytes != kernel.parameter_bytes() || n_bytes > 0 && buffer.is_null() {
            return Err(CUresult::CUDA_ERROR_INVALID_VALUE);
        }
        let mut arguments = vec![0; n_bytes];
        unsafe { ptr::copy_nonoverlapping(buffer, arguments.as_mut_ptr(), n_bytes) };
        let launch = Launch {
            grid: [grid_x, grid_y, grid_z],
            block: [block_x, block_y, block_z],
            dynamic_shared_bytes: shared_bytes,
        };
        context.ask(stream, Work::Kernel { function, launch, arguments });
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemsetD8Async(
    target: CUdeviceptr,
    byte: u8,
    n_bytes: usize,
    stream: CUstream,
) -> CUresult {
    entered(|context, _| {
        let stream = context.stream(stream)?;
        context.ask(stream, Work::Clear { target, byte, n_bytes });
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemcpyDtoDAsync_v2(
    target: CUdeviceptr,
    source: CUdeviceptr,
    n_bytes: usize,
    stream: CUstream,
) -> CUresult {
    entered(|context, _| {
        let stream = context.stream(stream)?;
        context.ask(stream, Work::Copy { source, target, n_bytes });
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    target: CUdeviceptr,
    source: *const c_void,
    n_bytes: usize,
    stream: CUstream,
) -> CUresult {
    entered(|context, settings| {
        let stream = context.stream(stream)?;
        if context.is_pinned(source.addr(), n_bytes) {
            let work = Work::Load { source: source.addr(), target, n_bytes };
            return context.ask_for_copy(stream, work, settings);
        }
        let bytes = unsafe { std::slice::from_raw_parts(source.cast::<u8>(), n_bytes) };
        context.ask(stream, Work::Write { bytes: bytes.to_vec(), target });
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
    target: *mut c_void,
    source: CUdeviceptr,
    n_bytes: usize,
    stream: CUstream,
) -> CUresult {
    entered(|context, settings| {
        let stream = context.stream(stream)?;
        let work = Work::Save { source, target: target.expose_provenance(), n_bytes };
        if context.is_pinned(target.addr(), n_bytes) {
            return context.ask_for_copy(stream, work, settings);
        }
        context.ask(stream, work);
        // To other memory the call comes back when all is there.
        context.run(stream, context.streams[stream].end(), settings)
    })
}
