/* The full program: CPython with all modules and libraries, from this directory, for what the plugin has no part of. The plugin starts it
 * by the directory's own loader, with the directory's own C library: nothing of the host's is needed or used.
 */
#include "interpreter.h"
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "full_modules.h" /* made by frozen_modules.py */

static void add_search_path(PyConfig *config, const char *directory, const char *name)
{
    char path[PATH_MAX];
    wchar_t *decoded;

    snprintf(path, sizeof path, "%s/%s", directory, name);
    decoded = Py_DecodeLocale(path, NULL);
    require(decoded ? PyWideStringList_Append(&config->module_search_paths, decoded) : PyStatus_NoMemory());
    PyMem_RawFree(decoded);
}

int main(int argc, char **argv)
{
    char directory[PATH_MAX], program[PATH_MAX];
    ssize_t length = readlink("/proc/self/exe", directory, sizeof directory - 1); /* this program's, or the loader's beside it */
    PyConfig config;

    if (length < 0) {
        perror("quantum-nat: /proc/self/exe");
        return 1;
    }
    directory[length] = '\0';
    *strrchr(directory, '/') = '\0';
    snprintf(program, sizeof program, "%.*s/quantum-nat", (int)(strrchr(directory, '/') - directory), directory);
    prctl(PR_SET_NAME, "quantum-nat"); /* in place of the loader's */
    signal(SIGPIPE, SIG_IGN); /* a warning that nobody reads is no reason to stop half-way */

    configure(&config, full_modules, program, directory);
    add_search_path(&config, directory, "python" EXTENSIONS_OF "/lib-dynload");
    add_search_path(&config, directory, "base_library.zip");
    add_search_path(&config, directory, "");
    config.install_signal_handlers = getenv("CNI_COMMAND") == NULL; /* who waits for a runtime's call does not interrupt it */
    require(PyConfig_SetBytesArgv(&config, argc, argv));
    require(Py_InitializeFromConfig(&config));
    PyConfig_Clear(&config);
    if (PyImport_ImportModule("start") == NULL) {
        PyErr_Print(); /* sys.exit comes by here, and does not come back */
        return 1;
    }
    return Py_FinalizeEx() < 0;
}
