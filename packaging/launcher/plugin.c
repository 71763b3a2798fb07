/* The plugin: what a runtime starts. Statically linked, so that it needs no loader, no library and no file of the host: CPython, and in its data
 * the modules of an ordinary call. It runs start.py, which passes everything else on to the full program (full.c).
 *
 * The build:    main -> record -> start_interpreter, with memory from `region` -> snapshot.py puts what was written to into the file
 * A call:       main -> resume -> start.run
 * No snapshot:  main -> start_interpreter -> start.run
 * docs/development/start.md has the reasons.
 */
#define Py_BUILD_CORE /* for the internal header */
#include "interpreter.h"
#include <fcntl.h>
#include <internal/pycore_runtime.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <unistd.h>

#include "plugin_modules.h" /* made by frozen_modules.py */

extern char **environ;
extern char snapshot_start[], snapshot_end[]; /* snapshot.ld */

/* What this program has of CPython's modules in C. Debian's list has all of them. */
extern PyObject *PyInit__abc(void), *PyInit__blake2(void), *PyInit__codecs(void), *PyInit__imp(void), *PyInit__io(void), *PyInit__json(void),
    *PyInit__signal(void), *PyInit__socket(void), *PyInit__string(void), *PyInit__struct(void), *PyInit__thread(void), *PyInit__weakref(void),
    *PyInit_errno(void), *PyInit_fcntl(void), *PyInit_gc(void), *PyInit_itertools(void), *PyInit_posix(void), *PyInit_time(void), *PyMarshal_Init(void),
    *_PyWarnings_Init(void);

struct _inittab _PyImport_Inittab[] = {
    {"_abc", PyInit__abc},       {"_blake2", PyInit__blake2}, {"_codecs", PyInit__codecs}, {"_imp", PyInit__imp},       {"_io", PyInit__io},
    {"_json", PyInit__json},     {"_signal", PyInit__signal}, {"_socket", PyInit__socket}, {"_string", PyInit__string}, {"_struct", PyInit__struct},
    {"_thread", PyInit__thread}, {"_warnings", _PyWarnings_Init}, {"_weakref", PyInit__weakref}, {"builtins", NULL}, {"errno", PyInit_errno},
    {"fcntl", PyInit_fcntl},     {"gc", PyInit_gc},           {"itertools", PyInit_itertools}, {"marshal", PyMarshal_Init}, {"posix", PyInit_posix},
    {"sys", NULL},               {"time", PyInit_time},       {NULL, NULL},
};

/* Instead of CPython's own, which would bring dlopen(3) along: a static program has nothing to load into. */
const char *_PyImport_DynLoadFiletab[] = {NULL};

PyObject *_PyImport_LoadDynamicModuleWithSpec(PyObject *spec, FILE *file)
{
    (void)file;
    return PyErr_Format(PyExc_ImportError, "%R cannot be loaded by a static program", spec);
}

/* No faulthandler: nothing asks for it, and it notes a size that depends on the processor (--wrap). */
PyStatus __wrap__PyFaulthandler_Init(int);

PyStatus __wrap__PyFaulthandler_Init(int enable)
{
    (void)enable;
    return PyStatus_Ok();
}

static PyObject *start; /* module start, once the interpreter has started */

/* Memory while the snapshot is taken: from `region`, which is part of it, and never given back. Afterwards it is the C library's again, and
 * what is in `region` stays there: freeing it does nothing, and to grow it is moved. Linked in place of malloc(3) and so on (--wrap).
 */
#define REGION_BYTES (6 << 20)
#define ALIGNMENT 16 /* of what malloc(3) returns; in front of it is its size */

void *__real_malloc(size_t), *__real_calloc(size_t, size_t), *__real_realloc(void *, size_t), *__wrap_malloc(size_t), *__wrap_calloc(size_t, size_t),
    *__wrap_realloc(void *, size_t);
void __real_free(void *), __wrap_free(void *);

static char region[REGION_BYTES] __attribute__((aligned(1 << 14))); /* as CPython aligns its pools */
static size_t region_used;
static bool is_recording;
static PyObjectArenaAllocator arenas; /* CPython's own */

static bool in_region(const void *memory)
{
    return (const char *)memory >= region && (const char *)memory < region + REGION_BYTES;
}

static void *take(size_t size, size_t alignment, size_t before)
{
    size_t at = (region_used + before + alignment - 1) & ~(alignment - 1);

    if (size > REGION_BYTES - at)
        Py_FatalError("the snapshot has not enough memory: REGION_BYTES in plugin.c");
    region_used = at + size;
    return region + at;
}

void *__wrap_malloc(size_t size)
{
    char *memory;

    if (!is_recording)
        return __real_malloc(size);
    memory = take(size, ALIGNMENT, ALIGNMENT);
    *(size_t *)(memory - ALIGNMENT) = size;
    return memory;
}

void *__wrap_calloc(size_t count, size_t size)
{
    return is_recording ? __wrap_malloc(count * size) : __real_calloc(count, size); /* what was never used is zero */
}

void *__wrap_realloc(void *memory, size_t size)
{
    size_t size_before;
    void *moved;

    if (!in_region(memory))
        return memory || !is_recording ? __real_realloc(memory, size) : __wrap_malloc(size);
    size_before = *(size_t *)((char *)memory - ALIGNMENT);
    if ((moved = __wrap_malloc(size)) != NULL)
        memcpy(moved, memory, size < size_before ? size : size_before);
    return moved;
}

void __wrap_free(void *memory)
{
    if (!in_region(memory))
        __real_free(memory);
}

/* While the snapshot is taken, the thread has no address: module importlib leaves it in freed memory. */
pthread_t __real_pthread_self(void), __wrap_pthread_self(void);

pthread_t __wrap_pthread_self(void)
{
    return is_recording ? 1 : __real_pthread_self();
}

static void *arena_alloc(void *context, size_t size)
{
    return is_recording ? take(size, 1 << 14, 0) : arenas.alloc(context, size);
}

static void arena_free(void *context, void *memory, size_t size)
{
    if (!in_region(memory))
        arenas.free(context, memory, size);
}

static void start_interpreter(void)
{
    PyObjectArenaAllocator own = {NULL, arena_alloc, arena_free};
    PyConfig config;

    PyObject_GetArenaAllocator(&arenas);
    PyObject_SetArenaAllocator(&own);
    configure(&config, plugin_modules, "quantum-nat", "/");
    config.install_signal_handlers = 0; /* who waits for a call does not interrupt it, and a command is run by the full program */
    if (is_recording) {
        config.use_hash_seed = 1; /* docs/security.md says why it may be the same in all processes */
        config.hash_seed = 1;
    }
    require(Py_InitializeFromConfig(&config));
    PyConfig_Clear(&config);
    PyGC_Disable(); /* nothing lives long enough */
    if ((start = PyImport_ImportModule("start")) == NULL) {
        PyErr_Print();
        exit(1);
    }
}

static PyObject *environment(void)
{
    return PyObject_GetAttrString(PyImport_ImportModule("posix"), "environ");
}

/* Write the snapshot: the interpreter as it is before its first call, without what is this process's own. */
static int record(const char *path)
{
    int file = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    ssize_t size = snapshot_end - snapshot_start;
    PyThreadState *thread;

    clearenv();
    setenv("TZ", "UTC0", 1); /* which module time looks at */
    is_recording = true;
    start_interpreter();
    if (!PyObject_CallMethod(start, "load", NULL)) {
        PyErr_Print();
        return 1;
    }
    PyDict_Clear(environment());
    thread = PyThreadState_Get();
    PyThread_tss_delete(&_PyRuntime.gilstate.autoTSSkey);
    thread->native_thread_id = 0;
    is_recording = false;
    return write(file, snapshot_start, size) != size;
}

/* Go on from the snapshot, as after a fork: in another process, whose thread is the only one. */
static void resume(void)
{
    PyThreadState *thread = PyThreadState_Get();
    PyObject *variables = environment();

    thread->thread_id = PyThread_get_thread_ident();
    if (PyThread_tss_create(&_PyRuntime.gilstate.autoTSSkey) || PyThread_tss_set(&_PyRuntime.gilstate.autoTSSkey, thread))
        Py_FatalError("no thread-specific storage");
    PyOS_AfterFork_Child();
    for (char **variable = environ; *variable; variable++) {
        char *equals = strchr(*variable, '=');
        PyObject *name = equals ? PyBytes_FromStringAndSize(*variable, equals - *variable) : NULL;
        PyObject *value = equals ? PyBytes_FromString(equals + 1) : NULL;

        if (name && value && !PyDict_Contains(variables, name))
            PyDict_SetItem(variables, name, value);
        Py_XDECREF(name);
        Py_XDECREF(value);
    }
}

static PyObject *list_of(char **strings)
{
    PyObject *list = PyList_New(0);

    for (; *strings; strings++) {
        PyObject *bytes = PyBytes_FromString(*strings);

        PyList_Append(list, bytes);
        Py_DECREF(bytes);
    }
    return list;
}

int main(int argc, char **argv)
{
    signal(SIGPIPE, SIG_IGN); /* a warning that nobody reads is no reason to stop half-way */
    if (start != NULL)
        resume();
    else if (argc == 3 && strcmp(argv[1], "--record-snapshot") == 0)
        return record(argv[2]);
    else
        start_interpreter();
    PyObject_CallMethod(start, "run", "yN", INTERNAL "/" LOADER, list_of(argv)); /* comes back only with an exception */
    PyErr_Print();
    return 1;
}
