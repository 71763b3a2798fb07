/* The frozen program: CPython, linked in, with the hot path's modules in its data segment.
 *
 * PyInstaller's own bootloader executes itself a second time and reads the interpreter's first modules out of a zip file, which
 * took as long as all that an ADD does. What else the program needs is as PyInstaller collected it, in a directory beside it whose
 * name has its checksum: while one version replaces another, each program finds its own.
 */
#define PY_SSIZE_T_CLEAN
#define Py_BUILD_CORE /* for the two internal headers */
#include <Python.h>
#include <internal/pycore_code.h>
#include <internal/pycore_import.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "frozen_modules.h" /* made by frozen_modules.py */

#ifndef INTERNAL
#error "packaging/build names the directory"
#endif
#define START "start" /* start.py */
#if PY_VERSION_HEX >= 0x030D0000
#error "CPython 3.13 and newer have no deep-frozen modules: what is below about them can go"
#endif

int __real__Py_Deepfreeze_Init(void);
int __wrap__Py_Deepfreeze_Init(void);

static int is_call(void)
{
    return getenv("CNI_COMMAND") != NULL;
}

static int intern_names(PyObject *object)
{
    PyCodeObject *code = (PyCodeObject *)object;
    int status = _PyStaticCode_InternStrings(code);

    for (Py_ssize_t i = 0; status == 0 && i < PyTuple_GET_SIZE(code->co_consts); i++) {
        PyObject *constant = PyTuple_GET_ITEM(code->co_consts, i);

        if (PyCode_Check(constant))
            status = intern_names(constant);
    }
    return status;
}

/* The linker has the interpreter call this instead of _Py_Deepfreeze_Init (--wrap). CPython brings its most used modules along as objects,
 * and at each start enters every name in their code into its table of strings, which writes to as many pages. A call needs a few of
 * these modules; if it needs another one after all, that comes out of base_library.zip.
 */
int __wrap__Py_Deepfreeze_Init(void)
{
    static struct _frozen kept[4]; /* the last one ends it */
    const struct _frozen *module;
    int status = 0, count = 0;

    if (!is_call())
        return __real__Py_Deepfreeze_Init();
    for (module = _PyImport_FrozenBootstrap; status == 0 && module->name; module++)
        status = intern_names(module->get_code());
    for (module = _PyImport_FrozenStdlib; status == 0 && module->name; module++) {
        if (strcmp(module->name, "abc") && strcmp(module->name, "codecs") && strcmp(module->name, "io"))
            continue;
        status = intern_names(module->get_code());
        kept[count++] = *module;
    }
    _PyImport_FrozenStdlib = kept;
    return status;
}

static void require(PyStatus status)
{
    if (PyStatus_Exception(status))
        Py_ExitStatusException(status);
}

static void set(PyConfig *config, wchar_t **field, const char *path)
{
    require(PyConfig_SetBytesString(config, field, path));
}

static void add_search_path(PyConfig *config, const char *directory, const char *name)
{
    char path[PATH_MAX];
    wchar_t *decoded;

    snprintf(path, sizeof path, "%s/%s", directory, name);
    decoded = Py_DecodeLocale(path, NULL);
    require(decoded ? PyWideStringList_Append(&config->module_search_paths, decoded) : PyStatus_NoMemory());
    PyMem_RawFree(decoded);
}

/* Tell the interpreter where everything is, so that it looks for nothing. */
static void set_paths(PyConfig *config, const char *program, const char *internal)
{
    set(config, &config->program_name, program);
    set(config, &config->executable, program);
    set(config, &config->base_executable, program);
    set(config, &config->home, internal);
    set(config, &config->prefix, internal);
    set(config, &config->base_prefix, internal);
    set(config, &config->exec_prefix, internal);
    set(config, &config->base_exec_prefix, internal);
    config->module_search_paths_set = 1;
    add_search_path(config, internal, "python" EXTENSIONS_OF "/lib-dynload"); /* first: the hot path has one there */
    add_search_path(config, internal, "base_library.zip");
    add_search_path(config, internal, "");
}

static void initialize(int argc, char **argv, const char *program, const char *internal)
{
    PyPreConfig preconfig;
    PyConfig config;

    PyPreConfig_InitIsolatedConfig(&preconfig);
    preconfig.utf8_mode = 1;
    require(Py_PreInitialize(&preconfig));

    PyConfig_InitIsolatedConfig(&config);
    config.site_import = 0;
    config.write_bytecode = 0;
    config.parse_argv = 0;
    /* Who waits for a call does not interrupt it; to look at every signal takes the interpreter a while. */
    config.install_signal_handlers = !is_call();
    signal(SIGPIPE, SIG_IGN); /* a warning that nobody reads is no reason to stop half-way */
    require(PyConfig_SetBytesArgv(&config, argc, argv));
    set_paths(&config, program, internal);
    PyImport_FrozenModules = frozen_modules;
    config._init_main = 0;
    require(Py_InitializeFromConfig(&config));
    if (is_call())
        PyGC_Disable(); /* nothing lives long enough, and what follows would set it off */
    require(_Py_InitializeMain());
    PyConfig_Clear(&config);
}

int main(int argc, char **argv)
{
    char program[PATH_MAX], internal[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", program, sizeof program - sizeof "/" INTERNAL);

    if (length < 0) {
        perror("quantum-nat: /proc/self/exe");
        return 1;
    }
    program[length] = '\0';
    snprintf(internal, sizeof internal, "%.*s/" INTERNAL, (int)(strrchr(program, '/') - program), program);
    initialize(argc, argv, program, internal);
    if (PyImport_ImportModule(START) == NULL) {
        PyErr_Print(); /* sys.exit comes by here, and does not come back */
        return 1;
    }
    return Py_FinalizeEx() < 0;
}
