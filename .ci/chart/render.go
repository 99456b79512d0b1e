// Renders a Helm chart's templates with what the chart uses of Helm: the template language is Go's own, the functions are those below, as
// Helm and Sprig document them. Helm itself is built from Go's module registry, which a machine that builds this need not reach.
//
//	go run render.go CHART VALUES    VALUES: JSON with Values, Chart and Release; prints the objects
package main

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"sort"
	"strings"
	"text/template"
)

func toJSON(value any) (string, error) {
	text, err := json.Marshal(value)
	return string(text), err
}

// A line for each key or element: what is in there is JSON, which is YAML.
func toYAML(value any) (string, error) {
	var lines []string
	add := func(before string, inside any) error {
		text, err := toJSON(inside)
		lines = append(lines, before+text)
		return err
	}
	var err error
	switch value := value.(type) {
	case map[string]any:
		keys := make([]string, 0, len(value))
		for key := range value {
			keys = append(keys, key)
		}
		sort.Strings(keys)
		for _, key := range keys {
			err = errors.Join(err, add(quote(key)+": ", value[key]))
		}
	case []any:
		for _, inside := range value {
			err = errors.Join(err, add("- ", inside))
		}
	default:
		err = add("", value)
	}
	return strings.Join(lines, "\n"), err
}

func isEmpty(value any) bool {
	is, _ := template.IsTrue(value)
	return !is
}

func whole(value any) int64 {
	switch number := value.(type) {
	case float64:
		return int64(number)
	case int:
		return int64(number)
	}
	panic(fmt.Sprintf("%v is no number", value))
}

func indent(spaces int, text string) string {
	pad := strings.Repeat(" ", spaces)
	return pad + strings.ReplaceAll(text, "\n", "\n"+pad)
}

// In numbers as JSON has them: 100 and not 1e+02.
func quote(value any) string {
	if number, is := value.(float64); is && number == float64(int64(number)) {
		value = int64(number)
	}
	return fmt.Sprintf("%q", fmt.Sprint(value))
}

func functions(all *template.Template) template.FuncMap {
	return template.FuncMap{
		"include": func(name string, data any) (string, error) {
			var text bytes.Buffer
			err := all.ExecuteTemplate(&text, name, data)
			return text.String(), err
		},
		"toYaml":     toYAML,
		"toJson":     toJSON,
		"quote":      quote,
		"nindent":    func(spaces int, text string) string { return "\n" + indent(spaces, text) },
		"trunc":      func(most int, text string) string { return text[:min(most, len(text))] },
		"trimSuffix": func(end, text string) string { return strings.TrimSuffix(text, end) },
		"contains":   func(part, text string) bool { return strings.Contains(text, part) },
		"sha256sum":  func(text string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(text))) },
		"list":       func(values ...any) []any { return values },
		"add":        func(one, other any) int64 { return whole(one) + whole(other) },
		"default": func(otherwise, given any) any {
			if isEmpty(given) {
				return otherwise
			}
			return given
		},
		"required": func(message string, given any) (any, error) {
			if given == nil || reflect.DeepEqual(given, "") {
				return nil, errors.New(message)
			}
			return given, nil
		},
		"fail": func(message string) (string, error) { return "", errors.New(message) },
	}
}

func main() {
	text, err := os.ReadFile(os.Args[2])
	check(err)
	var data map[string]any
	check(json.Unmarshal(text, &data))
	// As Helm: what is not there is empty where it is printed, and an error where something is asked of it.
	all := template.New("").Option("missingkey=zero")
	all.Funcs(functions(all))
	files, err := filepath.Glob(filepath.Join(os.Args[1], "templates", "*"))
	check(err)
	sort.Strings(files)
	for _, file := range files {
		source, err := os.ReadFile(file)
		check(err)
		_, err = all.New(file).Parse(string(source))
		check(err)
	}
	for _, file := range files {
		if strings.HasPrefix(filepath.Base(file), "_") {
			continue
		}
		fmt.Println("---")
		check(all.ExecuteTemplate(os.Stdout, file, data))
	}
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
